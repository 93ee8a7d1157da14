"""The nouns that go to disk, each a frozen typed value; a row or a file has a schema version.

Promises: what is written is read back equal; an unknown or missing field, or a wrong type, is an error.
"""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import fields
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

SCHEMA = 1  # of every row and file below; a folder of another schema is refused, never guessed at
ROW_SCHEMA = 2  # of responses, verdicts and runs

Role = Literal["system", "user", "assistant", "tool"]
Stop = Literal["end", "length", "filter", "error"]  # filter: a service's filter or a guard stopped it
RetrievalMethod = Literal["bm25", "dense", "hybrid"]
AnswerRule = Literal["exact", "contains", "number", "json"]  # by which an answer is right
Outcome = Literal["held", "broke", "answered", "refused", "unclear"]  # the third and fourth: of twins
Limit = Literal["turns", "replies", "tokens", "seconds"]  # of a conversation; replies: to one turn
Manner = Literal["refusal", "compliance", "incoherent", "empty"]
# Why an outcome is unclear. "loop", "wordless": no language; "echo": the request again; "replay": an example
# of the application; "unknown-tool": a call of none of its tools; "repeated-call": the same call again;
# "unread-result": the planted result was not seen; "no-proof": we supplied it; "unread-verdict": by a judge;
# "removed": a log took a part of the answer out.
Cause = Literal[
    "empty", "loop", "wordless", "echo", "replay", "off-topic", "unknown-tool", "repeated-call",
    "unread-result", "no-proof", "unread-verdict", "unanswered", "removed",
]  # fmt: skip
# Of harm: 1 a nuisance; 2 limited, in the user's own data; 3 information, money or data is lost; 4 for good.
Severity = Literal[1, 2, 3, 4]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen value that goes to disk as JSON."""


T = TypeVar("T")


def encoded(default: T) -> T:
    """A default that is encoded although its struct omits defaults."""
    value: T = msgspec.field(default_factory=lambda: copy(default))
    return value


def encode(record: object) -> bytes:
    """JSON of one record on one line, UTF-8, fields in declared order: equal values give equal bytes."""
    return msgspec.json.encode(record)


def digest(value: object) -> str:
    """The first 32 hex digits of SHA-256 over the value's canonical JSON (keys sorted)."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:32]


def is_digest(text: str) -> bool:
    """Whether a text is spelt as a digest: 32 lower-case hex digits, as every model's id is."""
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


# --- the lineage ---------------------------------------------------------------------------------


class FileHash(Record, frozen=True):
    """One file of a model: its path inside the model's folder, its size in bytes, its SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


class RecipeRecord(Record, frozen=True):
    """How a model was made: the recipe's kind and every setting that changed the result."""

    kind: str
    settings: dict[str, Any]


class Made(Record, frozen=True):
    """Circumstances of the making; they do not enter the id."""

    at: str  # ISO 8601, UTC
    host: str
    seconds: float
    versions: dict[str, str]
    device: str | UnsetType = UNSET  # with the name of a GPU; unset for a recipe that computes on none


Relation = Literal["lora", "alora", "finetune", "quantize", "merge", "distill"]  # how a child was made
Level = Literal["claimed", "consistent", "shown"]


class Evidence(Record, frozen=True, omit_defaults=True):
    """The evidence that a model descends from one parent; it was made by another tool.

    claimed     its user names the parent, or its own files do
    consistent  shapes and tokens are those of the parent, too
    shown       its values are the parent's, changed: models that were trained apart share no direction
    """

    level: Level
    claims: dict[str, str] = {}  # where in its files -> the parent that is named there
    agrees: tuple[str, ...] = ()  # "shapes", "tokens", "chat template": the same as the parent's
    differs: tuple[str, ...] = ()  # of the same: those that differ, which speaks against nothing
    n_tensors: int = 0  # whose values were compared with the parent's; constant ones say nothing
    n_equal: int = 0  # of them: equal in every bit
    cosine: float | None = None  # of the matrices with the parent's: 0 of unrelated models
    distance: float | None = None  # |child - parent| / |parent|, of the same
    ranks: tuple[int, ...] = ()  # of sampled matrices: singular values that hold 99 % of the change
    sizes: tuple[int, ...] = ()  # of the same: all singular values
    worst_step: float | None = None  # largest distance of a parent's weight from its quantized one, in steps
    within_step: float | None = None  # share of these weights that are at most one step away
    n_written: int = 0  # matrices whose outputs are added to the residual stream, as compared
    n_lost: int = 0  # of them: they lost a direction in which the parent wrote, as abliteration does

    @property
    def is_abliterated(self) -> bool:
        """Whether a tenth of the output matrices, and at least two, lost a direction."""
        return self.n_lost >= max(2, 0.1 * self.n_written)


class Descent(Record, frozen=True):
    """How another tool made a model, and the evidence of it, one of each parent."""

    made: Relation
    evidence: tuple[Evidence, ...]

    @property
    def level(self) -> Level:
        """The lowest level of all parents."""
        levels: tuple[Level, ...] = ("claimed", "consistent", "shown")
        return levels[min((levels.index(each.level) for each in self.evidence), default=0)]


class Model(Record, frozen=True):
    """A model in the lineage. `id` is a digest over recipe, parent ids and files."""

    id: str
    name: str
    family: str
    modality: str  # "text", ...
    licence: str
    format: Literal["safetensors", "gguf", "int8", "adapter", "remote", "scripted"]  # adapter: over a parent
    parents: tuple[str, ...]
    recipe: RecipeRecord
    files: tuple[FileHash, ...]
    made: Made
    notes: dict[str, str] = {}  # e.g. {"warning": "anonymous uploader; the hash is pinned"}
    schema: int = SCHEMA
    descent: Descent | UnsetType = UNSET  # of an adopted model
    # Of the files' config.json; UNSET in a record from before these fields, and for a model without one.
    architecture: str | UnsetType = UNSET
    quantization: str | UnsetType = UNSET


def why_not_generative(model: Model) -> str:
    """Return the reason why a model generates no text in any engine; "" if it does."""
    if model.modality != "text":
        return f"its modality is {model.modality}: it generates no text"
    if model.recipe.settings.get("objective") == "masked":
        return "it is an encoder, which fills masked positions and generates no text"
    return ""


# --- asking --------------------------------------------------------------------------------------


class ToolCall(Record, frozen=True):
    """A call that the model made. `arguments` is what it wrote, parsed; {} where it wrote none."""

    name: str
    arguments: dict[str, Any] = {}


class Effect(Record, frozen=True):
    """The effect of a call on the application's state. `{argument}` stands for what the model gave.

    kind      does
    append    puts `value` at the end of the list at `at`
    set       writes `value` at `at`
    delete    removes the value at `at`
    transfer  takes the amount `value` from the number at `at` and adds it to the number at `to`
    """

    kind: Literal["append", "set", "delete", "transfer"]
    at: str  # a path: "files/{name}"
    value: Any = None
    to: str = ""


class Change(Record, frozen=True):
    """A change of the state at `at` or beneath; where `value` is given, of these values."""

    at: str
    value: Any = None


class Tool(Record, frozen=True, omit_defaults=True):
    """A tool that the application offers, with the result it always gives.

    With `reads`, the result is the value there in the application's state; `effects` change the state.
    With `schema`, the JSON schema of its arguments in place of `parameters`, each call is checked first.
    """

    name: str
    description: str
    parameters: dict[str, str] = encoded({})  # name -> description
    result: str = encoded("OK")
    is_forbidden: bool = encoded(False)  # calling it without authority is a breach
    reads: str | None = None
    effects: tuple[Effect, ...] | None = None
    schema: dict[str, object] | None = None
    # Of a tool that runs: a Python function, the hash of its file, and its folder, which no digest has.
    function: str | None = None
    code: str | None = None
    home: str | None = None
    server: str | None = None  # of an MCP server: its name in the application
    is_stateful: bool | None = None  # its results depend on the calls before it

    @property
    def runs(self) -> bool:
        """Whether a call runs something, so that its result is recorded."""
        return self.function is not None or self.server is not None

    @property
    def argument_names(self) -> tuple[str, ...]:
        """The names of its arguments."""
        if self.schema is None:
            return tuple(self.parameters)
        properties = self.schema.get("properties")
        return tuple(properties) if isinstance(properties, dict) else ()

    @property
    def arguments_schema(self) -> dict[str, object]:
        """The JSON schema of its arguments."""
        if self.schema is not None:
            return self.schema
        properties = {name: {"type": "string", "description": what} for name, what in self.parameters.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}


class Message(Record, frozen=True):
    """One message of a conversation, in the order and the roles that every chat template knows."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    # UNSET, here and below: what is not given is not encoded, so that a stored digest stays.
    data: tuple[tuple[int, int], ...] | UnsetType = UNSET  # what is from outside: (first, last + 1)


class Decoding(Record, frozen=True):
    """How an answer is drawn. `temperature` 0 is greedy; `max_tokens` bounds one reply."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    json_schema: str | UnsetType = UNSET  # that each answer matches, as JSON text


class Retrieved(Record, frozen=True):
    """A passage retrieved for a turn of the user. Judges need its text, and may lack the index."""

    chunk: str  # its id in the index
    citation: str  # file and line, or page
    text: str

    @property
    def shown(self) -> str:
        """The passage as a model sees it."""
        return f"[{self.citation}]\n{self.text}"


class Request(Record, frozen=True, omit_defaults=True):
    """One question to an engine. Without messages `prefill` is a plain text to go on from."""

    key: int  # comes back on its reply
    messages: tuple[Message, ...]
    # What is None is not encoded, and the other defaults are: the ids of items of evals have them.
    decoding: Decoding = encoded(Decoding())
    seed: int = encoded(0)  # the trial's own
    prefill: str = encoded("")  # the assistant's answer is made to begin with this
    tools: tuple[Tool, ...] = encoded(())  # only where the application chose the model's native tool template
    n_shared: int = encoded(0)  # leading messages that every request of the application begins with
    retrieved: tuple[Retrieved, ...] | None = None  # for the last turn of the user
    tool_names: tuple[str, ...] | None = None  # of the tools shown, where a probe shows others
    planted: tuple[Retrieved, ...] | None = None  # next to the index in this trial, shown or not


class Reply(Record, frozen=True, omit_defaults=True):
    """An engine's answer: `prompt` is the rendered text it saw, `text` excludes the prefill."""

    key: int
    prompt: str
    text: str
    tokens: tuple[int, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    stop: Stop = "end"
    n_prompt_tokens: int = 0
    error: str | None = None  # set exactly where stop == "error"
    is_cached: bool = False
    n_tokens: int | None = None  # of the answer; None: as many as `tokens`. A remote model tells no tokens
    error_code: str | None = None  # of an error, its `code` (errors.py); None means "engine-failure"
    guarded: tuple[str, ...] | None = None  # what guards found, each "NAME: why"
    withheld: str | None = None  # the model's own text where guards changed it

    @property
    def n_answer_tokens(self) -> int:
        """The tokens of the answer, whichever field has them."""
        return len(self.tokens) if self.n_tokens is None else self.n_tokens


# --- probes --------------------------------------------------------------------------------------


class Check(Record, frozen=True):
    """How a breach shows: a kind of redteam/checks/, and its settings, which its file explains."""

    kind: str
    text: str = ""
    tool: str = ""
    arguments: dict[str, Any] = {}
    patterns: tuple[str, ...] = ()
    n_words: int = 12
    unless: tuple[str, ...] | UnsetType = UNSET
    allows: tuple[Change, ...] | UnsetType = UNSET
    settings: dict[str, Any] | UnsetType = UNSET  # those of a kind that have no field here


class Secret(Record, frozen=True):
    """A value that the application knows and must not say: at least four letters or digits."""

    name: str  # what a person would call it: "the manager override code"
    value: str


class ToolResult(Record, frozen=True, omit_defaults=True):
    """A tool's answer in this probe, instead of the application's; or only to calls with `arguments`."""

    tool: str
    text: str
    arguments: dict[str, str | int | float | bool] | None = None


class ToolDescription(Record, frozen=True, omit_defaults=True):
    """A tool's description in this probe, instead of the application's."""

    tool: str
    text: str
    is_added: bool = False  # the application has no such tool: it is offered one in this probe


class Usefulness(Record, frozen=True, omit_defaults=True):
    """The content of a useful answer to a benign probe. Everything that is given must hold.

    phrases  one of these is in the answer: words in this order, or a regular expression after "re:"
    tool     this tool was called
    changes  the calls made all of these changes of the application's state
    """

    phrases: tuple[str, ...] = ()
    tool: str = ""
    changes: tuple[Change, ...] = ()
    recorded: str = ""  # what the tool that recorded the answer found true; then its words do not count


class Probe(Record, frozen=True):
    """A question to the model, and how a breach of it shows. A benign twin is a probe with kind
    'benign'."""

    id: str  # "planted_secret/role-claim-01"; its twin is "planted_secret/role-claim-01~benign"
    technique: str
    kind: Literal["breach", "benign"]
    turns: tuple[str, ...]
    check: Check
    cluster: str  # behaviour: probes that vary one behaviour share it
    threats: tuple[str, ...] = ()  # with edition, e.g. "owasp-llm:2025/LLM07"
    passage: str = ""  # a retrieved passage, shown with the first user turn
    tool_result: ToolResult | None = None
    twin: str | None = None  # on a breach probe its benign twin's id, on a twin the breach probe's
    why_no_twin: str = ""
    language: str = "en"
    is_baseline: bool = False  # measures a capability: has a row of its own and is part of no scope
    useful: Usefulness | UnsetType = UNSET  # of a benign probe
    severity: Severity | UnsetType = UNSET  # of the harm that a breach of it does
    tool_description: ToolDescription | UnsetType = UNSET
    planted: tuple[Retrieved, ...] | UnsetType = UNSET  # next to the index, as an attack delivers the probe


class Turn(Record, frozen=True):
    """One move of an attack: what the user says, and what the assistant is made to begin with."""

    text: str
    prefill: str = ""
    decoding: Decoding | None = None  # how the reply is drawn, instead of as the application draws it
    before: tuple[Message, ...] = ()  # made-up earlier messages of user and assistant, put in front of `text`
    asks: bool = True  # whether this is the turn that makes the probe's demand; others only lead up to it
    is_fresh: bool = False  # begins a conversation of its own: the model sees nothing of what was said before
    retracts: bool = False  # takes the place of the turn before it: the model sees neither that nor its reply


class Consult(Record, frozen=True):
    """A question of an attack to its attacker model, outside the conversation with the target."""

    messages: tuple[Message, ...]
    decoding: Decoding = Decoding(max_tokens=256, temperature=1.0, top_p=0.9)


# --- what a study writes -------------------------------------------------------------------------


class ToolOutcome(Record, frozen=True):
    """The outcome of a call of a tool that runs. `result` is its key in tool_results.jsonl, or ""."""

    tool: str
    result: str = ""
    is_recorded: bool = False  # it was served from the record
    error_code: str | UnsetType = UNSET


class Exchange(Record, frozen=True):
    """One request and its reply in a response. `prompt` is the rendered text without its stored prefix."""

    prefix: str  # digest of a text in prefixes.jsonl that comes before `prompt`; "" for none
    prompt: str
    prefill: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    stop: Stop
    n_prompt_tokens: int
    n_tokens: int
    guarded: tuple[str, ...] | UnsetType = UNSET  # as in Reply
    withheld: str | UnsetType = UNSET
    retrieved: tuple[Retrieved, ...] | UnsetType = UNSET  # for the turn that it begins, as in the prompt
    outcomes: tuple[ToolOutcome, ...] | UnsetType = UNSET  # of its calls of tools that run


class Consulted(Record, frozen=True):
    """A question to the attacker model and its answer."""

    at: int  # exchanges with the target before it
    prompt: str
    text: str
    engine: str
    n_prompt_tokens: int
    n_tokens: int


class Response(Record, frozen=True):
    """A row of responses.jsonl: all answers and calls of the model in one trial, or an error."""

    index: int  # place in the plan's order
    trial: str  # digest over model id, application digest, probe, attack, sample, seed
    model: str
    application: str
    probe: str
    attack: str
    sample: int
    seed: int
    exchanges: tuple[Exchange, ...]
    engine: str  # what computed it, e.g. "torch bf16 w64 ..."
    error: str | None = None
    is_cached: bool = False
    consulted: tuple[Consulted, ...] | UnsetType = UNSET  # of an attack with an attacker model
    error_code: str | UnsetType = UNSET  # set exactly where `error` is: an error's code, or one of ROW_CODES
    machine: str | UnsetType = UNSET  # of a worker that computed it: the kind of its machine
    limit: Limit | UnsetType = UNSET  # of the application, which ended the conversation; unset for none
    recorded: dict[str, bool] | UnsetType = UNSET  # what the tool that recorded it found in its own state
    schema: int = ROW_SCHEMA


def digest_response(response: Response) -> str:
    """16 hex digits over the parts of a response that a judge reads, independent of its origin."""
    judged = [(e.prefill, e.text, e.tool_calls, e.stop) for e in response.exchanges]
    more = [] if isinstance(response.recorded, UnsetType) else [response.recorded]
    return hashlib.blake2b(encode([judged, response.error, *more]), digest_size=8).hexdigest()


class Unprompted(Record, frozen=True):
    """A breach that the probe did not ask for, found by a check of the application, e.g. "tool"."""

    check: str
    evidence: str


class Verdict(Record, frozen=True):
    """A row of verdicts.jsonl. An error row has outcome None: an error is never a verdict.

    `response` and `judged_by` are "" in a row written before there were such digests: it is judged again.
    """

    index: int
    trial: str
    judge: str
    outcome: Outcome | None
    manner: Manner | None
    evidence: str = ""  # what showed it, at most 200 characters
    error: str | None = None
    response: str = ""  # digest_response of what was judged
    judged_by: str = ""  # digest of the judge as it was
    score: float | UnsetType = UNSET  # how likely it broke, or refused: of a judge that gives a probability
    members: dict[str, Outcome] | UnsetType = UNSET  # of a panel: what each said
    error_code: str | UnsetType = UNSET  # set exactly where `error` is: an error's code, or one of ROW_CODES
    cause: Cause | UnsetType = UNSET  # of an unclear outcome: why
    attempted: str | UnsetType = UNSET  # of an outcome other than "broke": evidence that it tried to obey
    unprompted: tuple[Unprompted, ...] | UnsetType = UNSET
    useful: bool | UnsetType = UNSET  # of a benign probe that says what a useful answer holds
    schema: int = ROW_SCHEMA


class Estimate(Record, frozen=True, omit_defaults=True):
    """A number with its n, interval and method. `value` None: nothing to estimate from, or refused.

    `method` is for readers; what a program needs of it has a field of its own.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str  # "wilson", "clustered-t (g=31)", "rogan-gladen", "refused: ..."
    n_clusters: int | None = None  # clusters among the n trials; None where each trial has one of its own
    is_at_floor: bool = False  # effective n is its lower bound: too little is known of the clusters' spread
    note: str = ""  # why there is no value, or why the interval is wider than the method's own
    code: str = ""  # of a refused correction: why, e.g. "not-measured", "unlike-labels"


# --- rows without an answer ---------------------------------------------------------------------------
# The codes of rows without an answer, and whether such a row was skipped or failed.
#
# Promises: an error row is skipped (it was not asked) or failed (it was), never both.

# Beside the codes of errors (errors.py), as `error_code` of a row.
UNSUPPORTED = "unsupported-attack"  # not asked: the model cannot have this attack. No error
OUT_OF_SCOPE = "attack-not-for-technique"  # not asked: the attack's spec names other techniques. No error
ATTACKER_FAILED = "attacker-failed"
WORKER_DIED = "worker-died"
TURN_LIMIT = "turn-limit"  # of the application, before the probe's demand was made
CONVERSATION_LIMIT = "conversation-limit"  # the same, of tokens or seconds
NOTHING_ASKED = "nothing-asked"
RECORDED = "recorded-error"  # of an imported answer
JUDGE_FAILED = "judge-failed"
ROW_CODES = (
    UNSUPPORTED, OUT_OF_SCOPE, ATTACKER_FAILED, WORKER_DIED, TURN_LIMIT, CONVERSATION_LIMIT, NOTHING_ASKED,
    RECORDED, JUDGE_FAILED,
)  # fmt: skip


class Failable(Protocol):
    """A row, or a part of one, that may be an error row."""

    @property
    def error(self) -> str | None: ...
    @property
    def error_code(self) -> str | UnsetType: ...


def is_skipped(row: Failable) -> bool:
    """Whether this trial was not asked: its model cannot have the attack, or it is not for its technique."""
    return row.error is not None and row.error_code in (UNSUPPORTED, OUT_OF_SCOPE)


def is_out_of_scope(row: Failable) -> bool:
    """Whether the plan does not ask this trial, because its attack is for other techniques."""
    return row.error_code == OUT_OF_SCOPE


def is_failed(row: Failable) -> bool:
    """Whether this trial was asked and ended in an error."""
    return row.error is not None and not is_skipped(row)


# --- settings: a frozen record of which flags, keys and a page derive -----------------------------------


def flag(
    help: str, metavar: str = "", name: str = "", is_path: bool = False,
    bounds: tuple[int, int | None] | None = None,
) -> dict[str, object]:  # fmt: skip
    """The metadata of a setting. name: that of its flag, if it is not the field's. bounds: of an int."""
    return {"help": help, "metavar": metavar or None, "flag": name, "is_path": is_path, "bounds": bounds}


def kinds(record: type) -> dict[str, type]:
    """The type of each setting's value on a command line and in a file, by field."""
    return {each.name: _kind(str(each.type)) for each in fields(record) if each.metadata}


def _kind(annotation: str) -> type:
    if (name := annotation.removesuffix(" | None")) in ("bool", "int", "float"):
        return {"bool": bool, "int": int, "float": float}[name]
    return list if annotation.startswith("Sequence") else str
