"""Is a completion the JSON object that was asked for? Against a schema, or layer by layer with a graded reward."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.text.given import check_texts, needed
from rewards.text.match import token_f1
from rewards.weights import require
from studio.errors import ConfigError
from studio.types import Prompts, Scores

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
LONGEST = 100_000  # characters that are parsed; a longer completion is no JSON


@dataclass(frozen=True)
class JsonSchema:
    """layers  Σ_k weight_k·part_k over valid, struct, format, content;  schema  1 if the completion is JSON that the schema allows.

      valid    1 if the whole completion is JSON; 0.5 if a single object stands in it
      struct   share of required keys with the right type, less 0.25 per unknown key, at least 0; only if valid > 0
      format   1 if nothing but the object is there, the fields in `nested` are JSON too, and the length is in [shortest, longest]
      content  token F1 of the field `answer` with info["answer"], or exact equality of two numbers; only if struct >= 0.5

    Parts: json_valid, json_struct, json_format, json_content.  The four layers are those of RL-Struct (arXiv:2512.00319); their
    formulas and weights are a reconstruction, the paper's are not known.
    """

    how: Literal["layers", "schema"] = "layers"
    required: dict[str, str] = field(default_factory=lambda: {"reasoning": "string", "answer": "string"})  # key -> JSON type
    answer: str = "answer"  # the field whose content is compared with info["answer"]; "" = no content part
    nested: tuple[str, ...] = ()  # fields that must be JSON in a string
    shortest: int = 1  # characters
    longest: int = 4_096  # characters
    weights: tuple[float, float, float, float] = (0.2, 0.3, 0.2, 0.3)  # reconstruction; sum 1
    schema: dict[str, Any] | None = None  # of how=schema; None = info["schema"] of each prompt

    name: ClassVar[str] = "json_schema"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("RL-Struct (arXiv:2512.00319), reconstruction", "the completion is parsed as JSON")

    def check(self, prompts: Prompts) -> None:
        """ConfigError for types, schemas or prompts that cannot work; MissingError without jsonschema where it is needed."""
        where = f"reward {self.name!r}"
        for key, kind in self.required.items():
            if kind not in TYPES:
                raise ConfigError(f"{where}: required.{key}: expected one of {', '.join(TYPES)}, got {kind!r}. Name a JSON type.")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ConfigError(f"{where}: weights: expected four of at least 0 that add up to 1, got {self.weights}. Change them.")
        for row in range(len(prompts)):
            if self.how == "schema":
                self._validator(prompts, row)
            elif self.answer and self.weights[3]:
                needed(self.name, prompts, row, "answer")

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        import torch

        check_texts(self.name, samples)
        if self.how == "schema":
            fits = [self._allowed(text, self._validator(prompts, row)) for row, text in enumerate(samples)]
            return Scores(torch.tensor(fits, dtype=torch.float32))
        wanted = [
            needed(self.name, prompts, row, "answer") if self.answer and self.weights[3] else "" for row in range(len(samples))
        ]
        rows = [self.layers(text, str(answer)) for text, answer in zip(samples, wanted, strict=True)]
        parts = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
        names = ("json_valid", "json_struct", "json_format", "json_content")
        return Scores(parts @ torch.tensor(self.weights), None, dict(zip(names, parts.unbind(1), strict=True)))

    def layers(self, text: str, wanted: str) -> tuple[float, float, float, float]:
        """(valid, struct, format, content) of one completion, each in [0, 1]."""
        whole = parsed(text.strip())
        found = whole if isinstance(whole, dict) else embedded(text)
        valid = 1.0 if whole is not None else 0.5 if found is not None else 0.0
        if found is None:
            return valid, 0.0, 0.0, 0.0
        right = sum(is_of(found[key], kind) for key, kind in self.required.items() if key in found)
        unknown = len(found.keys() - self.required.keys())
        struct = max(0.0, right / max(len(self.required), 1) - 0.25 * unknown)
        nested = all(isinstance(found.get(key), str) and parsed(found[key]) is not None for key in self.nested)
        form = float(found is whole and nested and self.shortest <= len(text.strip()) <= self.longest)
        return valid, struct, form, content(found.get(self.answer), wanted) if struct >= 0.5 and self.answer else 0.0

    def _validator(self, prompts: Prompts, row: int) -> Any:
        schema = self.schema if self.schema is not None else needed(self.name, prompts, row, "schema")
        library = require("jsonschema", self.name, "json")
        kind = library.validators.validator_for(schema)
        try:
            kind.check_schema(schema)
        except library.SchemaError as problem:
            raise ConfigError(
                f"reward {self.name!r}: expected a JSON schema, got {str(schema)[:80]} ({problem.message}). Correct it."
            ) from problem
        return kind(schema)

    @staticmethod
    def _allowed(text: str, validator: Any) -> bool:
        found = _value(text.strip())
        return found is not _NONE and validator.is_valid(found)


_NONE = object()  # JSON has null, so None is a value


def parsed(text: str) -> Any:
    """The JSON value of a text; None for broken text and for null."""
    found = _value(text)
    return None if found is _NONE else found


def embedded(text: str) -> dict[str, Any] | None:
    """The only JSON object that stands in a text, fenced or between other words; None for none or several."""
    decoder, found, at = json.JSONDecoder(parse_constant=_refuse), [], 0
    text = text[:LONGEST]
    while (at := text.find("{", at)) >= 0 and len(found) < 2:
        try:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        except (ValueError, RecursionError):
            at += 1
    return found[0] if len(found) == 1 else None


def is_of(value: Any, kind: str) -> bool:
    """Whether a value has this JSON type; true and false are no numbers."""
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def content(found: Any, wanted: str) -> float:
    """1 or 0 where both are numbers, else the token F1 of the texts."""
    text = found if isinstance(found, str) else json.dumps(found)
    try:
        return float(float(text.replace(",", "")) == float(wanted.replace(",", "")))
    except ValueError:
        return token_f1(text, wanted)


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse) if len(text) <= LONGEST else _NONE
    except (ValueError, RecursionError):
        return _NONE


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
