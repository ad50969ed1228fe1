"""A frozen base model in a mapped image, and narrow tasks from signed bundles."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "Error", "Image", "Served", "Session", "Task", "Tokens", "__version__"]
__version__: str

_Path = str | PathLike[str]
_Integers = NDArray[np.integer[Any]] | Sequence[int]
_Shape = str | Sequence[_Shape] | dict[str, _Shape]

class Error(Exception):
    """Why an image, a task or a text cannot be used."""

    code: int
    """The number of `enum preface_status` in preface.h; from 10 to 21 the exit code of `preface verify`."""
    status: str
    """Its name there without PREFACE_, as "BAD_SIGNATURE"."""

@final
class Image:
    """A base image, mapped: processes that open the same file share its memory.

    Its tables are checked, the weights are not read. The file must not be changed or cut short while the image or a
    session of it is there: that ends the process. Renaming another file over it is safe.
    """

    def __new__(cls, path: _Path) -> Image: ...
    @property
    def kind(self) -> Literal["encoder", "decoder", "encoder-decoder", "other"]: ...
    @property
    def engine(self) -> str:
        """What runs it: "executor", or "plan" for a graph that the executor does not run."""
    @property
    def hidden(self) -> int:
        """Numbers in one row between layers."""
    @property
    def layers(self) -> int: ...
    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
    @property
    def max_positions(self) -> int | None:
        """Tokens that the base has positions for; None where nothing bounds them."""

@final
class Task:
    """What a loaded task is asked and answers."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Literal["label", "labels", "tags", "text"]: ...
    @property
    def inputs(self) -> int:
        """Texts that it is asked about at once: 1 or 2."""
    @property
    def labels(self) -> list[str]: ...

@final
class Served:
    """A task of a store whose active bundle is another than before."""

    @property
    def name(self) -> str: ...
    @property
    def bundle(self) -> str | None:
        """The id of the bundle that serves; None: none may, and the task is not to be asked any more."""
    @property
    def notes(self) -> list[str]:
        """What whoever runs the device should hear."""

@final
class Tokens:
    """A text, or a pair of them, as the base reads it, special tokens included.

    `ids` and `types` have an element a token; `types` tells of a pair which of the two a token is of, and is 0 for one
    text. `words` is for tags: the place of each word's first token, -1 where it has none.
    """

    def __new__(cls, ids: _Integers, types: _Integers | None = None, words: _Integers | None = None) -> Tokens: ...
    @property
    def ids(self) -> NDArray[np.uint32]: ...
    @property
    def types(self) -> NDArray[np.uint32]: ...
    @property
    def words(self) -> NDArray[np.int32]: ...
    def __len__(self) -> int: ...

@final
class Answer:
    """What a task says about a text.

    A "label" is one, "labels" are those that are probable enough, "tags" are one a word, None for a word that the
    tokenizer drops; a "text" has none.
    """

    @property
    def kind(self) -> Literal["label", "labels", "tags", "text"]: ...
    @property
    def label(self) -> str | None:
        """The one label; None where the text is outside the task's scope, and of the other kinds."""
    @property
    def out_of_scope(self) -> bool:
        """Whether the one label is less probable than the task demands."""
    @property
    def labels(self) -> list[str | None]: ...
    @property
    def classes(self) -> NDArray[np.int32]:
        """For each of `labels` its place among the task's labels; -1 for None."""
    @property
    def scores(self) -> NDArray[np.float32]:
        """For each of `labels` its probability; 0 for None."""
    @property
    def text(self) -> str | None:
        """The text that was generated."""

@final
class Session:
    """A base ready to run, with the tasks loaded onto it.

    Every call names the task that answers. Threads may share a session: they take turns, without the interpreter's lock
    while the base runs. Sessions of one image run side by side.
    """

    def __new__(
        cls,
        image: Image,
        *,
        max_tokens: int | None = None,
        truncate: bool = False,
        tokenizer_at_open: bool = True,
        threads: int = 1,
        pinned: bool = False,
        texts: int = 1,
    ) -> Session:
        """`max_tokens` bounds a text, special tokens included. `truncate` cuts the end off one that does not fit.

        The tokenizer is read with the first text, or never, where `tokenizer_at_open` is false. `threads` answer, the
        calling one among them; `pinned` keeps each but that on a processor of its own. Answers do not depend on how
        many there are. `generate_all` generates `texts` at once, each with memory of its own.
        """
    @property
    def tasks(self) -> dict[str, Task]:
        """The loaded tasks, in the order of loading."""
    def load(self, bundle: _Path, trust: _Path) -> str:
        """Verifies a bundle against a trust store and loads its task; returns the task's name."""
    def follow(self, store: _Path, trust: _Path) -> list[Served]:
        """Loads what a store has active, as `preface install` left it, verified against a trust store.

        At first every task, with later calls those that changed since; returns them. Call it between two requests: where
        nothing changed, in the trust store neither, it costs three look-ups of files. A task that may not be served any
        more, because its bundles are revoked or changed, answers nothing until another is installed: asking it is an
        error.
        """
    def answer(self, task: str, text: str, second: str | None = None) -> Answer:
        """Answers a text, or with `second` a pair."""
    def encode(self, task: str, text: str, second: str | None = None) -> Tokens:
        """A text or a pair as the task reads it."""
    def answer_tokens(self, task: str, tokens: Tokens | _Integers) -> Answer:
        """Answers tokens, or the token ids of one text."""
    def answer_all(self, requests: Sequence[tuple[str, Tokens | _Integers]]) -> list[Answer]:
        """Answers several at once, each with its task; faster than one by one. No task may generate text."""
    def set_generation(
        self,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stops: Sequence[str] | None = None,
        most_tokens: int | None = None,
    ) -> None:
        """Generates texts so from now on; without arguments, by the most probable tokens until the task ends the text.

        `temperature` divides the logits; 0 takes the most probable token. `top_k` keeps only so many of the most probable
        tokens, `top_p` those that add up to it. `repetition_penalty` makes tokens that were seen less probable. The draws
        of each text begin at `seed`. A text ends before each of `stops`, unless `constrain` says what it has, and behind
        `most_tokens` where the task allows more.
        """
    def constrain(self, task: str, *, labels: Sequence[str] | None = None, shape: _Shape | None = None) -> None:
        """Lets the texts of a task be one of `labels` or JSON of `shape` from now on; without either, anything.

        A shape is what `preface run --shape` reads as JSON: "string", "number", "integer" or "boolean"; a list of strings,
        of which the value is one; a list of one shape, of which the value is a list; a dict of shapes, whose keys come in
        this order. A task that is loaded again may say anything.
        """
    def generate(
        self, task: str, tokens: Tokens | _Integers, hear: Callable[[int], object] | None = None
    ) -> NDArray[np.uint32]:
        """The tokens that a task goes on with. `hear` is called with each; the text ends behind one where it returns true.

        It cannot use the session, and what it raises ends the call.
        """
    def generate_all(
        self, requests: Sequence[tuple[str, Tokens | _Integers]], hear: Callable[[int, str], object] | None = None
    ) -> list[str]:
        """The texts that tasks go on with, as many at once as the session has room for; faster than one by one.

        `hear` is called with the number of a request and a piece of its text, which ends where it returns true.
        """
    def stream(self, task: str, tokens: Tokens | _Integers, hear: Callable[[str], object]) -> str:
        """The text that a task goes on with. `hear` is called with each piece, as for `generate`."""
