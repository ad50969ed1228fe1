"""The module preface as a program in Python uses it: the tasks of the demo answer as `preface run --json` says, every
error is an exception with a code, and the interpreter's lock is free while the base runs.

PREFACE names the program, PREFACE_DEMO the folder that `preface demo` wrote; both have defaults in this project.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import preface

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(os.environ.get("PREFACE_DEMO", ROOT / "out/demo"))
PROGRAM = os.environ.get("PREFACE", str(ROOT / "target/release/preface"))
SHARED = Path(os.environ.get("PREFACE_SHARED", ROOT.parent / "shared"))
IMAGE, TRUST = DEMO / "base.base", DEMO / "trust"
TASKS = ["home_command", "message_urgency"]


def bundle(task: str) -> Path:
    return DEMO / f"{task}.preface"


def sentences(task: str, count: int) -> list[str]:
    with open(ROOT / "demo/tasks" / task / "test.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    return texts[:: len(texts) // count][:count]


def run(*arguments: object, text: str = "") -> str:
    words = [PROGRAM, *map(str, arguments)]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{words}: {done.stderr}")
    return done.stdout


def loaded(**options: object) -> preface.Session:
    session = preface.Session(preface.Image(IMAGE), **options)
    for task in TASKS:
        assert session.load(bundle(task), TRUST) == task
    return session


class Answers(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.session = loaded()

    def test_tasks_are_described(self) -> None:
        self.assertEqual(list(self.session.tasks), TASKS)
        task = self.session.tasks["message_urgency"]
        self.assertEqual((task.name, task.kind, task.inputs), ("message_urgency", "label", 1))
        self.assertEqual(sorted(task.labels), ["low", "normal", "urgent"])
        image = preface.Image(str(IMAGE))
        self.assertEqual((image.kind, image.engine, image.hidden, image.layers), ("encoder", "executor", 384, 6))
        self.assertEqual((image.vocabulary, image.max_positions), (30522, 512))

    def test_answers_are_those_of_preface_run(self) -> None:
        for task in TASKS:
            texts = sentences(task, 20)
            files = ["--base", IMAGE, "--bundle", bundle(task), "--trust", TRUST]
            lines = run("run", "--json", *files, text="\n".join(texts)).splitlines()
            self.assertEqual(len(lines), len(texts))
            labels = self.session.tasks[task].labels
            for text, line in zip(texts, map(json.loads, lines)):
                answer = self.session.answer(task, text)
                self.assertEqual((answer.kind, answer.label, answer.text), ("label", line["label"], None))
                self.assertEqual(answer.out_of_scope, line.get("out_of_scope", False))
                self.assertEqual((answer.scores.dtype, answer.scores.shape), (np.float32, (1,)))
                self.assertEqual(answer.scores[0], np.float32(line["score"]))
                self.assertEqual(answer.classes.dtype, np.int32)
                self.assertEqual([labels[place] for place in answer.classes], answer.labels)

    def test_token_ids_of_any_integer_type_are_answered_as_their_text(self) -> None:
        text = sentences("home_command", 1)[0]
        expected = self.session.answer("home_command", text)
        tokens = self.session.encode("home_command", text)
        self.assertEqual((tokens.ids.dtype, tokens.ids.shape), (np.uint32, (len(tokens),)))
        self.assertFalse(tokens.types.any())
        wide = np.repeat(tokens.ids.astype(np.int64), 2)
        forms = [tokens, tokens.ids, wide[::2], tokens.ids.astype(np.int16), tokens.ids.astype(np.uint64), tokens.ids.tolist()]
        forms.append(preface.Tokens(tokens.ids, types=tokens.types))
        for form in forms:
            answer = self.session.answer_tokens("home_command", form)
            self.assertEqual((answer.label, answer.scores), (expected.label, expected.scores))

    def test_several_threads_answer_as_one(self) -> None:
        threaded = loaded(threads=2, pinned=True)
        for text in sentences("home_command", 5):
            one, two = (session.answer("home_command", text) for session in (self.session, threaded))
            self.assertEqual((two.label, two.scores), (one.label, one.scores))

    def test_several_tasks_are_answered_at_once(self) -> None:
        requests, alone = [], []
        for task in TASKS:
            for text in sentences(task, 8):
                requests.append((task, self.session.encode(task, text)))
                alone.append(self.session.answer(task, text))
        together = self.session.answer_all(requests)
        self.assertEqual([answer.label for answer in together], [answer.label for answer in alone])
        np.testing.assert_allclose(
            np.concatenate([answer.scores for answer in together]),
            np.concatenate([answer.scores for answer in alone]),
            atol=1e-4,
        )

    def test_other_threads_run_while_the_base_does(self) -> None:
        requests = [(task, self.session.encode(task, text)) for task in TASKS for text in sentences(task, 100)]
        span: list[float] = []

        def answers() -> None:
            span.append(time.monotonic())
            self.session.answer_all(requests)
            span.append(time.monotonic())

        thread = threading.Thread(target=answers)
        ticks = []
        thread.start()
        while thread.is_alive():
            ticks.append(time.monotonic())
            time.sleep(0.001)
        begin, end = span
        middle = [tick for tick in ticks if begin + (end - begin) / 4 < tick < end - (end - begin) / 4]
        self.assertGreater(len(middle), 0, f"{len(ticks)} ticks in {end - begin} s")

    def test_threads_that_share_a_session_take_turns(self) -> None:
        texts = {task: sentences(task, 10) for task in TASKS}
        expected = {task: [self.session.answer(task, text).label for text in texts[task]] for task in TASKS}
        found: dict[str, list[str | None]] = {}

        def answers(task: str) -> None:
            found[task] = [self.session.answer(task, text).label for text in texts[task]]

        threads = [threading.Thread(target=answers, args=[task]) for task in TASKS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, expected)


    def test_the_example_of_the_readme_runs(self) -> None:
        readme = (ROOT / "runtime/python/README.md").read_text(encoding="utf-8")
        example = readme.split("```python\n")[1].split("```")[0].replace("out/demo", str(DEMO))
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 4, done.stderr)
        label = self.session.answer("home_command", "it is dark in here").label
        self.assertTrue(lines[0].startswith(f"{label} [0."), lines[0])
        self.assertEqual(lines[1], label)
        self.assertEqual(lines[3], "3 NO_TASK no task unknown is loaded; there are home_command")


class Stores(unittest.TestCase):
    def test_what_is_installed_is_taken_over(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            session = preface.Session(preface.Image(IMAGE))
            with self.assertRaises(preface.Error) as caught:
                session.follow(store, TRUST)
            self.assertEqual((caught.exception.status, caught.exception.code), ("UNREADABLE", 20))
            for place, task in enumerate(TASKS):
                files = ["--base", IMAGE, "--trust", TRUST, "--store", store]
                report = json.loads(run("install", bundle(task), *files, "--json"))
                (served,) = session.follow(store, TRUST)
                self.assertEqual((served.name, served.bundle, served.notes), (task, report["bundle_id"], []))
                self.assertEqual(list(session.tasks), TASKS[: place + 1])
                self.assertEqual(session.follow(store, TRUST), [])
                text = sentences(task, 1)[0]
                line = json.loads(run("run", "--json", *files, "--task", task, text))
                self.assertEqual(session.answer(task, text).label, line["label"])


class Errors(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.session = loaded(max_tokens=16)
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.at = Path(cls.folder.name)
        run("keygen", "--no-passphrase", "-o", cls.at, "--name", "other")
        run("trust", "new", "-o", cls.at / "trust", "--key", cls.at / "other.pub")
        altered = bytearray(bundle(TASKS[0]).read_bytes())
        altered[-1] ^= 1
        (cls.at / "altered").write_bytes(altered)

    def refused(self, status: str, code: int, words: str, call: object, *arguments: object, **named: object) -> None:
        with self.assertRaises(preface.Error) as caught:
            call(*arguments, **named)
        error = caught.exception
        self.assertEqual((error.status, error.code), (status, code), error)
        self.assertIn(words, str(error))

    def test_files(self) -> None:
        load, good = self.session.load, bundle(TASKS[0])
        self.refused("UNREADABLE", 20, "cannot read nowhere: No such file", preface.Image, "nowhere")
        self.refused("MALFORMED", 10, "is not a base image", preface.Image, good)
        self.refused("UNREADABLE", 20, "cannot read nowhere", load, "nowhere", TRUST)
        self.refused("TRUST_STORE", 18, "cannot read nowhere", load, good, "nowhere")
        self.refused("UNTRUSTED", 11, "is refused: not trusted", load, good, self.at / "trust")
        self.refused("BAD_SIGNATURE", 12, "is refused: bad signature", load, self.at / "altered", TRUST)
        self.assertEqual(list(self.session.tasks), TASKS)

    def test_tasks_and_texts(self) -> None:
        answer, long = self.session.answer, "word " * 40
        self.refused("NO_TASK", 3, "there are home_command, message_urgency", answer, "unknown", "text")
        self.refused("NO_TASK", 3, "no task home", self.session.answer_all, [("home", [101, 102])])
        self.refused("TOO_LONG", 32, "at most 16 fit", answer, TASKS[0], long)
        self.assertEqual(len(loaded(max_tokens=16, truncate=True).encode(TASKS[0], long)), 16)
        self.refused("INPUTS", 34, "reads one text", answer, TASKS[0], "text", "text")
        self.refused("OTHER_ANSWER", 39, "generates no text", self.session.generate, TASKS[0], [101, 102])

    def test_token_ids(self) -> None:
        answer = self.session.answer_tokens
        self.refused("TOKEN", 35, "token 30522 is outside", answer, TASKS[0], np.array([101, 30522, 102]))
        self.refused("TOKEN", 35, "token -1 is none", answer, TASKS[0], np.array([101, -1]))
        self.refused("TOKEN", 35, "token 4294967296 is none", answer, TASKS[0], np.array([1 << 32]))
        self.refused("TOKEN", 35, "token type -1 is none", preface.Tokens, [101, 102], types=[0, -1])
        self.refused("EMPTY", 33, "no tokens", answer, TASKS[0], np.array([], dtype=np.int64))
        for wrong in (np.array([101.0]), np.array([[101, 102]]), "text", None):
            with self.assertRaises(TypeError, msg=repr(wrong)):
                answer(TASKS[0], wrong)
        with self.assertRaises(ValueError):
            preface.Tokens([101, 102], types=[0])

    def test_an_error_is_an_exception_like_others(self) -> None:
        self.assertTrue(issubclass(preface.Error, Exception))
        with self.assertRaises(TypeError):
            preface.Session(preface.Image(IMAGE), 16)


EXPORT = SHARED / "exports/llama.sdpa.legacy.op14.onnx"


@unittest.skipUnless(EXPORT.exists(), "the exports of ../shared are not here")
class Texts(unittest.TestCase):
    """A decoder goes on with texts: one that a prompt was trained for, for an epoch."""

    def test_a_task_goes_on_with_a_text(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            (at / "base").mkdir()
            (at / "base/model.onnx").symlink_to(EXPORT)
            (at / "base/tokenizer.json").symlink_to(EXPORT.parent / "tokenizer.json")
            line = json.dumps({"text": "w5 w9", "target": "w7 w8 w11"})
            (at / "lines.jsonl").write_text(f"{line}\n" * 16)
            data = ["--train", at / "lines.jsonl", "--dev", at / "lines.jsonl", "--epochs", 1, "--no-advice"]
            run("train", "--base", at / "base", *data, "--tokens", 2, "-o", at / "adapter")
            run("keygen", "--no-passphrase", "-o", at, "--name", "key")
            run("trust", "new", "-o", at / "trust", "--key", at / "key.pub")
            names = ["--task", "text", "--sequence", 1, "--key", at / "key.key", "-o", at / "bundle"]
            run("pack", at / "adapter", "--base", at / "base", *names)
            run("compile", at / "base", "-o", at / "image")
            files = ["--base", at / "image", "--bundle", at / "bundle", "--trust", at / "trust"]
            expected = json.loads(run("run", "--json", *files, "w5 w9"))
            drawing = ["--temperature", 50, "--seed", 7]
            options = [[], drawing, [*drawing, "--most-tokens", 2], [*drawing, "--top-k", 2], [*drawing, "--top-p", 0.25]]
            options += [["--repetition-penalty", 4.0], [*drawing, "--stop", " ", "--stop", "w5 never"]]
            options += [[*drawing, "--only-labels", "w5", "w9 w17"]]
            said = [json.loads(run("run", "--json", *files, "w5 w9", *more))["text"] for more in options]
            self.check(at, *said)

    def check(self, at: Path, expected: str, drawn: str, *others: str) -> None:
        image = preface.Image(at / "image")
        session = preface.Session(image)
        with self.assertRaises(preface.Error) as caught:
            session.set_generation(temperature=1)
        self.assertEqual(caught.exception.status, "NO_TASK")
        self.assertEqual(session.load(at / "bundle", at / "trust"), "text")
        self.assertEqual((image.kind, session.tasks["text"].kind), ("decoder", "text"))
        answer = session.answer("text", "w5 w9")
        self.assertEqual((answer.kind, answer.text), ("text", expected))
        self.assertEqual((answer.label, answer.labels, answer.scores.size), (None, [], 0))
        ids = session.generate("text", session.encode("text", "w5 w9"))
        self.assertEqual((ids.dtype, ids.size), (np.uint32, len(expected.split())))
        session.set_generation(temperature=50, seed=7)
        self.assertEqual(session.answer("text", "w5 w9").text, drawn)
        self.assertNotEqual(drawn, expected)
        drawing: dict[str, Any] = {"temperature": 50, "seed": 7}
        options: list[dict[str, Any]] = [drawing | {"most_tokens": 2}, drawing | {"top_k": 2}, drawing | {"top_p": 0.25}]
        options += [{"repetition_penalty": 4}, drawing | {"stops": [" ", "w5 never"]}]
        for option, said in zip(options, others):
            session.set_generation(**option)
            self.assertEqual(session.answer("text", "w5 w9").text, said, option)
        session.set_generation(**drawing)
        session.constrain("text", labels=["w5", "w9 w17"])
        self.assertEqual(session.answer("text", "w5 w9").text, others[-1])
        session.constrain("text")
        self.assertEqual(session.answer("text", "w5 w9").text, drawn)
        self.stream(session, drawn)
        self.together(preface.Session(image, texts=3), at, drawing)
        self.refused("INVALID_ARGUMENT", session.set_generation, top_k=0)
        self.refused("INVALID_ARGUMENT", session.set_generation, most_tokens=0)
        self.refused("INVALID_ARGUMENT", session.set_generation, stops=[""])
        self.refused("INVALID_ARGUMENT", session.constrain, "text", labels=[])
        self.refused("INVALID_ARGUMENT", session.constrain, "text", shape={"on": "boolean"})
        self.refused("NO_TASK", session.constrain, "none", labels=["w5"])
        with self.assertRaises(TypeError):
            session.constrain("text", labels=["w5"], shape="string")
        self.refused("OTHER_ANSWER", session.answer_all, [("text", [5, 9])])

    def stream(self, session: preface.Session, expected: str) -> None:
        """Pieces as they come; a function that hears them ends the text, or raises, or waits for it in vain."""
        tokens = session.encode("text", "w5 w9")
        heard: list[str] = []
        self.assertEqual(session.stream("text", tokens, heard.append), expected)
        self.assertEqual("".join(heard), expected)
        self.assertGreater(len(heard), 1)
        first = session.stream("text", tokens, lambda piece: True)
        self.assertEqual(first, heard[0])
        ids = session.generate("text", tokens)
        self.assertEqual(session.generate("text", tokens, lambda token: token == ids[1]).tolist(), ids[:2].tolist())

        class Enough(Exception):
            pass

        def raises(piece: str) -> None:
            raise Enough(piece)

        with self.assertRaises(Enough):
            session.stream("text", tokens, raises)
        self.refused("BUSY", session.stream, "text", tokens, lambda piece: session.answer("text", piece))
        self.assertEqual(session.answer("text", "w5 w9").text, expected)

    def together(self, session: preface.Session, at: Path, drawing: dict[str, Any]) -> None:
        """Texts that are generated at once are those that come one by one; who hears one may end it."""
        session.load(at / "bundle", at / "trust")
        session.set_generation(**drawing)
        requests = [("text", session.encode("text", text)) for text in ["w5 w9", "w4", "w7 w8 w9", "w6", "w5 w5"]]
        heard = [""] * len(requests)

        def hear(index: int, piece: str) -> bool:
            heard[index] += piece
            return index == 1

        alone = [session.stream(*request, lambda piece: request is requests[1]) for request in requests]
        self.assertEqual(session.generate_all(requests, hear), alone)
        self.assertEqual(heard, alone)
        self.assertEqual(session.generate_all([]), [])
        self.refused("NO_TASK", session.generate_all, [("none", [5])])
        self.refused("INVALID_ARGUMENT", preface.Session, preface.Image(at / "image"), texts=0)

    def refused(self, status: str, call: Any, *arguments: Any, **named: Any) -> None:
        with self.assertRaises(preface.Error) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.status, status)


if __name__ == "__main__":
    unittest.main()
