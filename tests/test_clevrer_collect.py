"""CLEVRER data sets: the same files whatever happens on the way, read back and browsed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import run

from cjepa_agent.collecting import collection as module
from cjepa_agent.collecting.clevrer import CLEVRERCollection
from cjepa_agent.collecting.collection import collect, collect_shards
from cjepa_agent.data.episodes import SPLITS, EpisodeFile
from envs.clevrer import browse
from envs.clevrer.annotation import read_scene
from envs.clevrer.dataset import Dataset, scene_paths, split_of
from envs.clevrer.env import CLEVREREnv
from envs.clevrer.physics import simulate
from envs.clevrer.questions import execute, judge
from envs.clevrer.video import encode_video

VIDEOS, SIZE = 6, 16  # two parts
SCENES = {"train": [0, 1, 2, 3], "validation": [10000], "test": [15000]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CLEVRERCollection:
    """Settings of a data set that has been made by one worker."""
    out = tmp_path_factory.mktemp("made") / "clevrer"
    collection = CLEVRERCollection(out, workers=1, videos=VIDEOS, width=SIZE, height=SIZE)
    collect(collection)
    return collection


@pytest.fixture
def copied(made: CLEVRERCollection, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made.out, tmp_path / "clevrer"))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the HDF5 one, whose bytes h5py does not promise."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".h5")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(one: Path, other: Path) -> bool:
    a, b = EpisodeFile(one / "frames.h5"), EpisodeFile(other / "frames.h5")
    frames = a.columns == b.columns and all(a.read_all(c).tobytes() == b.read_all(c).tobytes() for c in a.columns)
    return frames and contents(one) == contents(other)


def test_layout(made: CLEVRERCollection) -> None:
    expected = {"frames.h5", *(f"questions/{name}.json" for name in ("train", "validation", "test", "test_answers"))}
    for split, scenes in SCENES.items():
        for scene in scenes:
            start = scene - scene % 1000
            for kind, place, suffix in (
                ("video", f"video_{split}", "mp4"),
                ("annotation", f"annotation_{split}", "json"),
                ("counterfactual", f"counterfactual/{split}", "npz"),
            ):
                expected.add(f"{place}/{kind}_{start:05d}-{start + 1000:05d}/{kind}_{scene:05d}.{suffix}")
    assert {str(path.relative_to(made.out)) for path in made.out.rglob("*") if path.is_file()} == expected
    assert not made.parts.exists()


def test_frames_are_the_environments(made: CLEVRERCollection) -> None:
    data = EpisodeFile(made.file)
    assert [len(data.episodes(split)) for split in ("train", "validation", "test")] == [4, 1, 1]
    assert data.attrs["seed"] == 0 and data.attrs["window"] == 180
    (episode,) = data.episodes("validation")
    assert set(data.read("scene", episode)) == {10000}
    annotation = json.loads(Dataset(made.out).path("annotation", 10000).read_text())
    env = CLEVREREnv("ground_truth", observation_width=SIZE, observation_height=SIZE)
    observation, _ = env.reset(options={"scene": annotation})
    for frame in range(3):
        assert np.array_equal(data.read("pixels", episode)[frame], observation["pixels"])
        assert data.read("state", episode)[frame] == pytest.approx(observation["states"])
        observation, *_ = env.step(int(data.read("action", episode)[frame, 0]))


def test_without_pictures_all_else_is_the_same(made: CLEVRERCollection, tmp_path: Path) -> None:
    bare = replace(made, out=tmp_path / "clevrer", pictures=False)
    collect(bare)
    assert {name: text for name, text in contents(made.out).items() if not name.endswith(".mp4")} == contents(bare.out)
    one, other = EpisodeFile(made.file), EpisodeFile(bare.file)
    assert set(one.columns) - set(other.columns) == {"pixels"}
    assert all(one.read_all(name).tobytes() == other.read_all(name).tobytes() for name in other.columns)
    with pytest.raises(FileExistsError, match="pictures: False, not None"):
        collect(replace(bare, pictures=True))


def test_programs_give_the_answers_from_the_files_alone(made: CLEVRERCollection) -> None:
    dataset = Dataset(made.out)
    number = 0
    for split in SCENES:
        file = dataset.questions(split)
        assert not file.problems
        for scene in file.scenes:
            facts = dataset.facts(scene["scene_index"])
            for question in scene["questions"]:
                number += 1
                if "choices" not in question:
                    assert execute(facts, question["program"]) == question["answer"]
                for choice in question.get("choices", []):
                    assert judge(facts, choice["program"], question["program"]) == choice["answer"]
    assert number > 10 * VIDEOS


def test_counterfactuals_are_simulations_without_an_object(made: CLEVRERCollection) -> None:
    dataset = Dataset(made.out)
    scene = read_scene(json.loads(dataset.path("annotation", 0).read_text()))
    told = dataset.counterfactuals(0)
    assert told is not None
    assert list(told.without) == list(scene.ids) and told.window == 180
    for removed, course in told.without.items():
        truth = simulate(scene, {removed: 0})
        assert course.objects == truth.objects and course.collisions == truth.collisions
        for name in ("location", "orientation", "velocity", "angular_velocity", "inside", "present"):
            assert np.array_equal(getattr(course, name), getattr(truth, name))


def test_the_number_of_workers_changes_nothing(made: CLEVRERCollection, tmp_path: Path) -> None:
    collection = replace(made, out=tmp_path / "clevrer", workers=2)
    collect(collection)
    assert same(collection.out, made.out)


def test_a_killed_run_is_continued(
    made: CLEVRERCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = replace(made, out=tmp_path / "clevrer")
    collect_shards(collection, collection.recipe())
    collection.shard_path(1).unlink()
    half = Dataset(collection.out).path("video", 15000)
    half.write_bytes(b"half")
    half.with_name(f".{half.name}.partial").write_bytes(b"half")
    stamp = collection.shard_path(0).stat().st_mtime_ns

    def killed(*arguments: object) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "merged", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(collection)
    assert collection.shard_path(0).stat().st_mtime_ns == stamp
    assert not collection.file.exists()
    monkeypatch.undo()
    collection.out.rename(gone := collection.out.with_name("gone"))
    with pytest.raises(FileExistsError, match="which is gone; remove it, too"):
        collect(collection)
    gone.rename(collection.out)
    collect(collection)
    assert same(collection.out, made.out)
    collect(collection)
    assert "complete already" in capsys.readouterr().out


def test_nothing_of_others_is_overwritten(made: CLEVRERCollection, copied: Path) -> None:
    before = contents(copied)
    with pytest.raises(FileExistsError, match="seed: 0, not 1"):
        collect(replace(made, out=copied, seed=1))
    (copied / "frames.h5").unlink()  # as a released data set, which has none
    with pytest.raises(FileExistsError, match="holds something else and stays as it is; choose another out="):
        collect(replace(made, out=copied))
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("videos", 2, "at least 3, got 2"),
        ("videos", 20001, "at most 20000"),
        ("window", 181, "at most 180"),
        ("width", 65, "must be even, got 65 x 64"),
        ("height", 0, "at least 2"),
        ("workers", -1, "at least 0"),
    ],
)
def test_bad_settings_are_refused(name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        CLEVRERCollection(**{name: value})  # type: ignore[arg-type]


def test_the_largest_data_set_has_the_released_splits() -> None:
    scenes = CLEVRERCollection(videos=20000).scenes
    assert scenes == list(range(20000))
    assert [split_of(scene) for scene in (0, 9999, 10000, 14999, 15000, 19999)] == (
        ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    )


@pytest.mark.parametrize("videos", [3, 5, 10, 4001, 19998, 19999])
def test_no_scene_is_in_two_splits(videos: int) -> None:
    scenes = CLEVRERCollection(videos=videos).scenes
    assert len(set(scenes)) == len(scenes) == videos
    assert {split_of(scene) for scene in scenes} == set(SPLITS)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "clevrer"
    done = run("cjepa_agent.collect", "env=clevrer", "videos=3", "width=16", "height=16", f"out={out}")
    assert "3 videos (1 train, 1 validation, 1 test), 384 frames" in done.stdout
    assert re.search(r"train: \d+ questions about 1 videos", done.stdout)
    assert "collecting: 100%" in done.stderr
    assert Dataset(out).video(10000).shape == (128, 16, 16, 3)
    refused = run("cjepa_agent.collect", "env=clevrer", "videos=1", expect=2)
    assert refused.stderr == "ValueError: videos must be at least 3, got 1\n"
    assert "videos" in run("cjepa_agent.collect", "videos=3", expect=1).stderr, "no key of Push-T"
    assert "videos=1000" in run("cjepa_agent.collect", "--help").stdout


# Reading


def test_flaws_are_reported_and_the_rest_is_read(copied: Path) -> None:
    dataset = Dataset(copied)
    broken, short, other = (dataset.path("annotation", scene) for scene in (0, 1, 2))
    broken.write_text(broken.read_text()[:1000])
    annotation = json.loads(short.read_text())
    short.write_text(json.dumps({**annotation, "motion_trajectory": annotation["motion_trajectory"][:100]}))
    other.write_text(dataset.path("annotation", 3).read_text())
    problems: list[str] = []
    assert [scene for scene, _ in dataset.trajectories("train", problems.append)] == [3]
    for problem, path, scene, message in zip(
        problems, (broken, short, other), range(3), (".*", "100 of 128 frames", "annotates scene 3"), strict=True
    ):
        assert re.match(f"{path}: scene {scene}: {message}", problem)

    dataset.path("video", 0).write_bytes(b"no video")
    dataset.path("video", 1).write_bytes(encode_video(np.zeros((20, SIZE, SIZE, 3), np.uint8)))
    problems.clear()
    assert [(scene, len(frames)) for scene, frames in dataset.videos("train", problems.append)] == [(2, 128), (3, 128)]
    assert re.search("video_00000.mp4: scene 0: broken video", problems[0])
    assert re.search("video_00001.mp4: scene 1: 20 of 128 frames", problems[1])

    questions = copied / "questions" / "train.json"
    entries = json.loads(questions.read_text())
    del entries[0]["questions"][0]["question_subtype"], entries[1]["questions"][0]["answer"]
    questions.write_text(json.dumps(entries))
    file = dataset.questions("train")
    assert file.scenes[0]["questions"][0]["question_subtype"]
    assert len(file.problems) == 1 and "train.json: scene 1: question 0: answer" in file.problems[0]

    dataset.path("counterfactual", 3).write_bytes(b"no arrays")
    with pytest.raises(ValueError, match="00003.npz: scene 3: broken counterfactuals"):
        dataset.facts(3)
    with pytest.raises(FileNotFoundError, match=r"no video of scene 500: expected .*video_00500.mp4 or .*videos/train"):
        dataset.video(500)


def test_the_released_arrangement_is_read(copied: Path) -> None:
    for kind in ("video", "annotation"):
        (copied / f"{kind}s").mkdir()
        for split in SCENES:
            (copied / f"{kind}_{split}").rename(copied / f"{kind}s" / split)
    shutil.rmtree(copied / "annotations" / "test")
    shutil.rmtree(copied / "counterfactual")
    (copied / "questions" / "test_answers.json").unlink()
    dataset = Dataset(copied)
    assert dataset.scenes("annotation", "validation") == [10000] and not dataset.scenes("annotation", "test")
    assert len(dataset.video(15000)) == 128
    assert not dataset.facts(0).without
    file = dataset.questions("test")
    assert not file.problems and "answer" not in file.scenes[0]["questions"][0]


def test_the_broken_released_annotation_does_not_stop_the_others(copied: Path) -> None:
    dataset = Dataset(copied)
    released = dataset.path("annotation", 10000).read_text()
    for scene in (10799, 10800, 10801):
        path = scene_paths(copied, "annotation", scene)[0]
        path.parent.mkdir(exist_ok=True)
        text = json.dumps({**json.loads(released), "scene_index": scene})
        path.write_text(text[: len(text) // 2] if scene == 10800 else text)
    problems: list[str] = []
    assert [scene for scene, _ in dataset.trajectories("validation", problems.append)] == [10000, 10799, 10801]
    assert len(problems) == 1 and "annotation_10800.json: scene 10800: " in problems[0]


def test_a_video_of_the_released_size_is_read(tmp_path: Path) -> None:
    frames = np.zeros((128, 320, 480, 3), np.uint8)
    frames[:, :, 240:] = 200
    path = scene_paths(tmp_path, "video", 15000)[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_video(frames))
    read = Dataset(tmp_path).video(15000)
    assert read.shape == frames.shape
    assert np.abs(read[-1].astype(int) - frames[-1]).mean() < 5


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no CLEVRER data set at"):
        Dataset(tmp_path)


# The page


class Page(HTMLParser):
    """Counts elements by name and class, and checks that they are closed."""

    VOID = {"meta", "input", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs).get("class") or ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_everything(
    made: CLEVRERCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browse, "FILM", (24, 16))
    page = tmp_path / "page.html"
    browse.main([str(made.out), "--scene", "10000", "15000", "--out", str(page)])
    assert capsys.readouterr() == (f"{page}: scenes 10000, 15000\n", "")
    text = page.read_text()
    seen = Page(text).seen
    dataset = Dataset(made.out)
    facts = {scene: dataset.facts(scene) for scene in (10000, 15000)}
    questions = [
        question for split in ("validation", "test") for question in dataset.questions(split).scenes[0]["questions"]
    ]
    runs = sum(len(question.get("choices", [question])) for question in questions)
    assert seen.count(("video", "")) == sum(2 + len(known.without) for known in facts.values())
    assert (seen.count(("svg", "timeline")), seen.count(("svg", "graph"))) == (2, 2)
    graphs = [known.graph for known in facts.values()]
    edges = sum(len(causes) for graph in graphs for causes in (*graph.objects, *graph.parents))
    assert seen.count(("path", "edge")) == edges > 0
    assert (seen.count(("details", "question")), seen.count(("table", "run"))) == (len(questions), runs)
    assert "the program gives" not in text and 'problem">' not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)


def test_the_page_works_in_a_browser(made: CLEVRERCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    monkeypatch.setattr(browse, "FILM", (24, 16))
    file = tmp_path / "page.html"
    browse.main([str(made.out), "--scene", "0", "--out", str(file)])
    facts = Dataset(made.out).facts(0)
    frames = [event.frame for event in (*facts.events, *(facts.unseen or ()))]
    problems: list[str] = []
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"))  # or Playwright's own
        except playwright.Error as error:
            pytest.skip(f"no browser: {error.message.splitlines()[0]}")
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(file.as_uri())
        marks = page.locator(".timeline .event")
        assert marks.count() == len(frames)
        for number, frame in enumerate(frames):
            marks.nth(number).dispatch_event("click")
            assert page.locator("output").inner_text() == f"frame {frame}"
            assert float(page.locator(".cursor").get_attribute("x1")) == browse.LEFT + browse.FRAME * frame
        question = page.locator("details.question").nth(1)
        assert not question.locator("table.run").first.is_visible()
        question.locator("summary").first.click()
        assert question.locator("table.run").first.is_visible()
        browser.close()
    assert not problems


def test_the_page_of_a_flawed_data_set_says_what_is_missing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset(copied)
    dataset.path("annotation", 0).write_text("{")
    dataset.path("counterfactual", 1).unlink()
    dataset.path("counterfactual", 2).write_bytes(b"no arrays")
    page = copied / "page.html"
    browse.main([str(copied), "--scene", "0", "1", "2", "--out", str(page)])
    reported = capsys.readouterr().err
    assert "annotation_00000.json: scene 0: " in reported
    assert "scene 2: broken counterfactuals" in reported
    text = page.read_text()
    assert Page(text).seen.count(("svg", "timeline")) == 2
    assert "what happens in the scene is not known" in text
    assert re.search("what happens without object . is not known", text) or "removed" not in text
    for arguments, message in (
        ([str(copied), "--scene", "77"], "scene 77"),
        ([str(copied / "counterfactual")], "no CLEVRER"),
    ):
        with pytest.raises(SystemExit):
            browse.main(arguments)
        assert message in capsys.readouterr().err
