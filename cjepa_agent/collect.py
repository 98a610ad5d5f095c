"""``python -m cjepa_agent.collect``: episodes to disk, on all cores; resumes where a killed run stood."""

from __future__ import annotations

from cjepa_agent.collecting.clevrer import CLEVRERCollection
from cjepa_agent.collecting.collection import Collection, collect
from cjepa_agent.collecting.pusht import PushTCollection
from configs.command import Variants, command

ENVIRONMENTS: Variants[Collection] = Variants("env", {"pusht": PushTCollection, "clevrer": CLEVRERCollection})

main = command("collect", ENVIRONMENTS, collect)

if __name__ == "__main__":
    main()
