"""Checkpoints: exact round trips, and one clear error for each way to be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import CONFIG, SETTINGS, tiny_checkpoint

from cjepa_agent import checkpoint as module
from cjepa_agent import hub as hub_module
from cjepa_agent import tensors as tensors_module
from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.videosaur import SmallVideoSAURConfig
from cjepa_agent.files import plain
from cjepa_agent.predictors.slotformer import SlotFormerConfig
from cjepa_agent.provenance import changed_settings, settings_record
from cjepa_agent.tensors import digest
from cjepa_agent.train import TrainConfig
from cjepa_agent.vqa.checkpoint import find
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from planners import ActionPrior


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_checkpoint().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON or safetensors file in place."""
    if path.suffix == ".json":
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))
    else:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)


def test_round_trip_is_exact(folder: Path) -> None:
    saved, loaded = tiny_checkpoint(), Checkpoint.from_pretrained(folder)
    assert not loaded.model.training and loaded.model.config == CONFIG
    assert (loaded.training, loaded.version, loaded.commit) == (saved.training, "1.2.3", "abc")
    state = loaded.model.state_dict()
    assert state.keys() == saved.model.state_dict().keys()
    for name, value in saved.model.state_dict().items():
        assert torch.equal(state[name], value), name
    for name, value in saved.prior.tensors().items():
        assert torch.equal(loaded.prior.tensors()[name], value), name


def test_folder_has_the_documented_files_and_saving_again_replaces_them(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    tiny_checkpoint(seed=1).save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "model.safetensors", "processors.safetensors", "README.md", "notes.txt",
    }  # fmt: skip
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1  # whoever may read one may read all
    expected = tiny_checkpoint(seed=1).model.predictor.time
    assert torch.equal(Checkpoint.from_pretrained(folder).model.predictor.time, expected)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "block: slot 2" in card


def test_a_failed_save_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(tensors_module, "save", full)
    with pytest.raises(OSError, match="no space left"):
        tiny_checkpoint(seed=1).save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_agent_saves_and_loads_the_same_checkpoint(folder: Path, tmp_path: Path) -> None:
    CJEPAAgent.from_pretrained(folder, SETTINGS).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "processors.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_of_the_name_of_bundled_weights_is_never_mistaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint().save_pretrained("pusht")
    with pytest.raises(ValueError, match="give the folder's absolute path"):
        Checkpoint.from_pretrained("pusht")
    assert Checkpoint.from_pretrained("./pusht").model.config == Checkpoint.from_pretrained(Path("pusht")).model.config
    assert Checkpoint.from_pretrained().model.config.encoder.n_slots == 4
    assert Checkpoint.from_pretrained(Path("pusht-unmasked")).model.config.encoder.n_slots == 4
    with pytest.raises(ValueError, match="empty"):
        Checkpoint.from_pretrained("")


def test_files_do_not_tell_the_folders_of_a_machine(tmp_path: Path) -> None:
    def encoder(folder: str) -> SlotAutoencoder:
        torch.manual_seed(0)
        sizes = {"image_size": 16, "patch": 8, "width": 8, "depth": 1, "heads": 2, "positions": 2, "decoder_width": 8}
        return SlotAutoencoder(SmallVideoSAURConfig(n_slots=2, slot_dim=8, **sizes, weights=folder))

    own, others = encoder("/home/own/patches"), encoder("/home/other/frozen")
    own.save(tmp_path)
    assert "/home" not in (tmp_path / "encoder.json").read_text()
    model = WorldModel(WorldModelConfig(encoder=others.config))
    model.encoder.load_state_dict(others.encoder.state_dict())
    assert own.is_of(model)
    assert SlotAutoencoder.load(tmp_path).digest() == own.digest()
    config = TrainConfig(encoder=own.config)
    assert "/home" not in json.dumps(settings_record(config), default=plain)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "processors.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Checkpoint.from_pretrained(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a checkpoint folder nor a Hub id"):
        Checkpoint.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "processors.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_file(folder: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=f"{name} is truncated or no safetensors file"):
        Checkpoint.from_pretrained(folder)


WEIGHT, BUFFER, BASIS = "predictor.head_slot.weight", "processor.slot_mean", "action_prior.basis"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda t: t.pop(WEIGHT), f"missing tensors .*{WEIGHT}"),
        ("model.safetensors", lambda t: t.update(extra=torch.zeros(1)), "unexpected tensors .*extra"),
        ("model.safetensors", lambda t: t.update(renamed=t.pop(WEIGHT)), "missing .*; unexpected .*renamed"),
        ("model.safetensors", lambda t: t.update({WEIGHT: t[WEIGHT][:-1].clone()}), f"{WEIGHT} is .*expected"),
        ("model.safetensors", lambda t: t.update({WEIGHT: t[WEIGHT].half()}), "float16"),
        ("model.safetensors", lambda t: t[WEIGHT].fill_(float("nan")), f"NaN or infinite .*{WEIGHT}"),
        ("processors.safetensors", lambda t: t.pop(BUFFER), f"missing tensors .*{BUFFER}"),
        ("processors.safetensors", lambda t: t.pop(BASIS), f"missing tensors .*{BASIS}"),
        ("processors.safetensors", lambda t: t.update(extra=torch.zeros(1)), "unexpected tensors .*extra"),
        ("processors.safetensors", lambda t: t[BUFFER].fill_(float("inf")), f"NaN or infinite .*{BUFFER}"),
        ("processors.safetensors", lambda t: t[BASIS].fill_(float("nan")), "no valid action prior: basis"),
        (
            "processors.safetensors",
            lambda t: t["action_prior.low"].fill_(2.0),
            "no valid action prior: bounds are empty",
        ),
        ("config.json", lambda c: c.update(model_type="bert"), "another kind of model: model_type is 'bert'"),
        ("config.json", lambda c: c.pop("model_type"), "another kind of model"),
        ("config.json", lambda c: c.pop("training"), "lacks training"),
        ("config.json", lambda c: c["model"].update(new_key=1), "new_key"),
        ("config.json", lambda c: c["model"].pop("encoder"), "encoder"),
        (
            "processors.safetensors",
            lambda t: t["processor.proprio_std"].zero_(),
            r"\['processor.proprio_std'\] must be positive",
        ),
        (
            "processors.safetensors",
            lambda t: t.update({BASIS: t[BASIS].double()}),
            "prior: expected float32, got .*float64",
        ),
        ("config.json", lambda c: c["model"].update(proprio_dim="4"), '"proprio_dim" - should be "int"'),
        ("config.json", lambda c: c["model"].update(proprio_dim=-1), "proprio_dim and env_action_dim 0 or more"),
        ("config.json", lambda c: c["model"].update(action_block=0), "action_block must be 1 or more"),
        ("config.json", lambda c: c["model"].update(encoder=7), "encoder is 7; expected keys and values"),
        ("config.json", lambda c: c["model"].pop("predictor"), "expected .*'predictor'.*, got"),
        ("config.json", lambda c: c["model"].update(roles={"block": 9}), "roles must name slots"),
        ("config.json", lambda c: c["model"].update(roles={"block": True}), '"roles" - should be "dict"'),
        ("config.json", lambda c: c["model"].update(roles=None), '"roles" - should be "dict"'),
        ("config.json", lambda c: c["model"]["predictor"].update(heads=4.0), 'predictor: .*"heads" - should be "int"'),
        ("config.json", lambda c: c["model"]["predictor"].update(residual="no"), '"residual" - should be "bool"'),
        (
            "config.json",
            lambda c: c["model"]["predictor"].update(dropout=float("nan")),
            '"dropout" - should be "float"',
        ),
        ("config.json", lambda c: c["model"]["predictor"].update(deep=1), r"predictor.kind=cjepa has no \['deep'\]"),
        ("config.json", lambda c: c.update(training="x"), "training must be keys and values"),
        ("config.json", lambda c: c["model"]["predictor"].update(heads=3), "not a multiple"),
        ("config.json", lambda c: c["model"]["predictor"].update(width=32), "does not fit"),
    ],
)
def test_wrong_contents(folder: Path, name: str, change: Callable[[dict], object], message: str) -> None:
    edit(folder / name, change)
    with pytest.raises(ValueError, match=message):
        Checkpoint.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_invalid_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        Checkpoint.from_pretrained(folder)


def test_prior_of_another_action_block_is_refused() -> None:
    limit = torch.ones(4)
    with pytest.raises(ValueError, match="blocks of 4 numbers, the world model of 10"):
        Checkpoint(tiny_checkpoint().model, ActionPrior.standard(-limit, limit))


def test_hub_upload_and_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: dict[str, dict[str, bytes]] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            hub.setdefault(repo_id, {})

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
            hub[repo_id] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
            return f"https://hub/{repo_id}"

    def download(repo_id: str, **_: object) -> str:
        for name, data in hub[repo_id].items():
            (folder / name).write_bytes(data)
        return str(folder)

    monkeypatch.setattr(module, "HfApi", Api)
    monkeypatch.setattr(hub_module, "snapshot_download", download)
    sent = tiny_checkpoint(seed=2)
    assert sent.push_to_hub("somebody/pusht") == "https://hub/somebody/pusht"
    received = Checkpoint.from_pretrained("somebody/pusht", revision="main")
    assert torch.equal(received.model.predictor.time, sent.model.predictor.time)


@pytest.mark.parametrize(
    ("answerer", "predictor"), [("clevrer-aloe-pixels", "clevrer"), ("clevrer-aloe-predicted", "clevrer-state")]
)
def test_bundled_answerers_of_predictions_learned_from_bundled_predictors(answerer: str, predictor: str) -> None:
    """Rollouts by them are what these take."""
    model = Checkpoint.from_pretrained(predictor).model
    config = json.loads((find(answerer) / "config.json").read_text())
    slots = config["training"]["slots"]
    assert slots["checkpoint"] == digest(model.state_dict(), changed_settings(model.config))
    assert slots["slots"]["encoder"] == SlotAutoencoder.of(model).digest()


def test_settings_that_are_defaults_tell_nothing() -> None:
    plain, other = WorldModelConfig(), WorldModelConfig(action_block=2, predictor=SlotFormerConfig(heads=8))
    assert changed_settings(plain) == {}
    assert changed_settings(other) == {"action_block": 2, "predictor": {"kind": "slotformer", "heads": 8}}


def test_only_weights_on_the_hub_have_revisions(folder: Path) -> None:
    for name in (None, "pusht", folder):
        with pytest.raises(ValueError, match="revision is for weights on the Hub"):
            Checkpoint.from_pretrained(name, revision="main")
