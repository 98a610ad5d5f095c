"""``gym.make("PushT-v0")`` and ``CLEVRER-v0`` without an import of ours, in interpreters of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IDS = ("PushT-v0", "CLEVRER-v0")
MAKE = 'import gymnasium; env = gymnasium.make("PushT-v0"); env.reset(seed=0)'
EARLY = "import sys; loaded = [m for m in ('gymnasium', 'numpy', 'pymunk', 'torch') if m in sys.modules]; "


def python(code: str, *arguments: str, cwd: Path) -> str:
    """Run ``code`` with warnings as errors; returns what it printed."""
    command = [sys.executable, "-W", "error::UserWarning", *arguments, "-c", code]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("id", IDS)
def test_bare_interpreter_of_an_installation(installation: None, tmp_path: Path, id: str) -> None:
    make = MAKE.replace("PushT-v0", id)
    code = f"{EARLY}assert not loaded, loaded; assert 'envs' not in sys.modules; {make}; print(env.spec.id)"
    assert python(code, "-I", cwd=tmp_path).strip() == id


def hooked(tmp_path: Path, code: str) -> str:
    """Run ``code`` where the registration module is all that has been imported, as an installation does it."""
    (tmp_path / "_copy.py").write_text((ROOT / "envs" / "registration.py").read_text())
    prologue = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'GymnasiumFinder']; "
        f"sys.path[:0] = [{str(tmp_path)!r}]; import _copy; _copy.register_when_imported(); "
    )
    return python(f"{prologue}sys.path.append({str(ROOT)!r}); {code}", cwd=tmp_path)


def test_hook_registers_when_gymnasium_is_imported(tmp_path: Path) -> None:
    code = f"{EARLY}assert not loaded, loaded; assert 'envs' not in sys.modules; {MAKE}; print(type(env.unwrapped))"
    assert "envs.pusht.env.PushTEnv" in hooked(tmp_path, code)


def test_hook_leaves_no_trace_in_the_import_system(tmp_path: Path) -> None:
    code = (
        "_copy.register_when_imported(); assert sum('Gymnasium' in type(f).__name__ for f in sys.meta_path) == 1; "
        "import gymnasium.envs, inspect; assert not any('Gymnasium' in type(f).__name__ for f in sys.meta_path); "
        "inspect.getsource(gymnasium.envs); assert 'exec_module' not in vars(gymnasium.envs.__loader__)"
    )
    hooked(tmp_path, code)


def test_double_registration_is_silent(tmp_path: Path) -> None:
    hooked(tmp_path, f"{MAKE}; import envs; envs.register_envs(); envs.register_envs()")


def test_failing_registration_warns_and_spares_gymnasium(tmp_path: Path) -> None:
    code = (
        "import warnings; _copy.SPECS = ({'id': 'not an id!'},); "
        "caught = warnings.catch_warnings(record=True); seen = caught.__enter__(); warnings.simplefilter('always'); "
        "import gymnasium; gymnasium.make('CartPole-v1'); print([str(w.message) for w in seen])"
    )
    assert "cjepa-agent could not register its environments" in hooked(tmp_path, code)


def test_a_project_with_its_own_envs_package_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("MINE = True")
    assert hooked(tmp_path, "import gymnasium, envs; print(envs.MINE)").strip() == "True"


@pytest.mark.parametrize("first", ["import envs; import gymnasium", "import gymnasium; import envs"])
def test_importing_envs_registers(first: str) -> None:
    code = f"{first}; print(all(id in gymnasium.registry for id in {IDS}))"
    assert python(code, cwd=ROOT).strip() == "True"


def test_importing_envs_is_light() -> None:
    assert python(f"import envs; {EARLY}print(loaded)", cwd=ROOT).strip() == "[]"


def test_spec_is_complete() -> None:
    import gymnasium

    import envs

    envs.register_envs()
    assert gymnasium.spec("PushT-v0").max_episode_steps == 300
