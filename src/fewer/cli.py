"""The command line: one visible dict from verb to room, and the rules that hold for every verb.

`fewer VERB [OPTIONS]` imports the verb's module, reads its request dataclass with tyro, lets flags win over
`--config FILE.toml`, validates everything once more, runs the verb, and prints its result: a table for
people, or with `--json` exactly one JSON object on standard output.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb lives: `function(request, progress) -> result` and the request's dataclass."""

    module: str
    request: str
    function: str
    help: str


# fmt: off
VERBS: dict[str, Verb] = {
    "generate": Verb("fewer.compose", "GenerateCommand", "generate_anywhere", "pictures from prompts"),
    "train sana": Verb(
        "fewer.generate.training.command", "TrainSanaRequest", "train_sana_command",
        "a text-to-image transformer, on your pictures or on composed emoji",
    ),
    "train large": Verb(
        "fewer.generate.training.command_large", "TrainLargeRequest", "train_large_command",
        "an edition of the built-in model that draws twice the side",
    ),
    "train few-steps": Verb(
        "fewer.generate.training.command_few_steps", "TrainFewStepsRequest", "train_few_steps_command",
        "a model that draws in twenty steps -> one that draws in two",
    ),
    "train lora": Verb(
        "fewer.generate.training.command", "TrainLoraRequest", "train_lora_command",
        "an adapter that teaches a model a subject or a style from a few pictures",
    ),
    "train style": Verb(
        "fewer.generate.training.command_style", "TrainStyleRequest", "train_style_command",
        "generated weights (CAN) that teach a model a drawing style from some fifty pictures",
    ),
    "bench": Verb(
        "fewer.bench", "BenchRequest", "bench_command", "the published figures, each with its peer"
    ),
    "convert": Verb(
        "fewer.quantize.command_convert", "ConvertRequest", "convert_command", "checkpoints from form to form"
    ),
    "quantize": Verb(
        "fewer.quantize.command", "QuantizeRequest", "quantize_command", "a 16-bit model to 4 bits"
    ),
    "serve": Verb(
        "fewer.serve.command", "ServeRequest", "serve_command",
        "a server: page, OpenAI and ComfyUI doors, queue",
    ),
    "recommend train": Verb(
        "fewer.recommend.command", "TrainRequest", "train_command", "learn what comes next from interactions"
    ),
    "recommend search": Verb(
        "fewer.recommend.command", "SearchRequest", "search_command", "find the length of short-term interest"
    ),
    "recommend evaluate": Verb(
        "fewer.recommend.command_serving", "EvaluateRequest", "evaluate_command",
        "full-ranking figures of a model",
    ),
    "recommend suggest": Verb(
        "fewer.recommend.command_serving", "SuggestRequest", "suggest_command", "next items for histories"
    ),
    "recommend export": Verb(
        "fewer.recommend.command_serving", "ExportRequest", "export_command", "ONNX encoder, vectors, index"
    ),
    "recommend update": Verb(
        "fewer.recommend.command", "UpdateRequest", "update_command", "go on learning from new interactions"
    ),
    "info": Verb(
        "fewer.core.info", "InfoRequest", "info_command", "versions, devices, kernels, models found"
    ),
    "learn distill": Verb(
        "fewer.learn.distillation.command_distill", "DistillRequest", "distill_command",
        "a labelled set -> a few synthetic pictures that train almost as well",
    ),
    "learn audit": Verb(
        "fewer.learn.distillation.command_audit", "AuditRequest", "audit_command",
        "what a distilled file gives away about real pictures",
    ),
    "learn merge": Verb(
        "fewer.learn.distillation.command_merge", "MergeRequest", "merge_command",
        "distilled files of several sites -> one",
    ),
    "learn export": Verb(
        "fewer.learn.distillation.command_merge",
        "ExportRequest",
        "export_command",
        "a distilled file -> .npz, PNG folder, page or datasheet",
    ),
    "learn import": Verb(
        "fewer.learn.distillation.command_import",
        "ImportRequest",
        "import_command",
        "a set made by the field's published code -> a distilled file",
    ),
    "learn indicator": Verb(
        "fewer.learn.distillation.command_indicator",
        "IndicatorRequest",
        "indicator_command",
        "is distilling worth it? asked of random subsets beforehand",
    ),
    "learn variation": Verb(
        "fewer.learn.distillation.command_variation",
        "VariationRequest",
        "variation_command",
        "several data sets distilled together against one by one",
    ),
    "stitch": Verb(
        "fewer.stitch.command",
        "StitchRequest",
        "stitch_command",
        "an endoscopy video becomes one map of the tube",
    ),
    "learn semi-supervised": Verb(
        "fewer.learn.command_semi_supervised",
        "SemiSupervisedRequest",
        "semi_supervised_command",
        "a classifier from a few labels and many pictures without",
    ),
    "learn invariant": Verb(
        "fewer.learn.command_invariant",
        "InvariantRequest",
        "invariant_command",
        "a classifier for domains it has never seen, beside plain training",
    ),
    "learn predict": Verb(
        "fewer.learn.command_predict", "PredictRequest", "predict_command", "the classes of pictures"
    ),
    "learn evaluate": Verb(
        "fewer.learn.command_evaluate",
        "EvaluateRequest",
        "evaluate_command",
        "accuracy and calibration of a model, or what a distilled set teaches",
    ),
    "reconstruct": Verb(
        "fewer.generate.command_reconstruct",
        "ReconstructRequest",
        "reconstruct_command",
        "a picture through the autoencoder and back, with PSNR and SSIM",
    ),
    "train autoencoder": Verb(
        "fewer.generate.command_train_autoencoder",
        "TrainAutoencoderRequest",
        "train_autoencoder_command",
        "a deep compression autoencoder on your own pictures, in three phases",
    ),
    "train class-conditional": Verb(
        "fewer.generate.command_train_class_conditional",
        "TrainClassConditionalRequest",
        "train_class_conditional_command",
        "pictures of classes from labelled pictures, with weights that follow the class (CAN)",
    ),
}
# fmt: on

EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code: 0, or that of the error (design: 2, 3, 4, 5, 130)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"fewer {_version()}")
        return 0
    name, rest = _split_verb(words)
    if name is None and len(words) == 2 and words[1] in ("-h", "--help") and _verbs_of(words[0]):
        print(_overview(_verbs_of(words[0])))
        return 0
    if name is None:
        known = _verbs_of(words[0]) or list(VERBS)
        given = " ".join(words[:2]) if words[0] in {verb.split()[0] for verb in VERBS} else words[0]
        print(f"fewer: {given!r} is not a verb; allowed: {', '.join(known)}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("fewer")
    except metadata.PackageNotFoundError:
        return "0+source"


def _verbs_of(room: str) -> list[str]:
    return [verb for verb in VERBS if verb.split()[0] == room]


def _overview(names: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {VERBS[name].help}" for name in names]
    return "\n".join(
        [
            "fewer: more with fewer bits, tokens, steps, labels, samples and parameters",
            "",
            "usage: fewer VERB [OPTIONS]      fewer VERB --help      fewer --version",
            "",
            *lines,
            "",
            "every verb takes --json (one JSON object on standard output) and --config FILE.toml (flags win)",
        ]
    )


def _split_verb(words: list[str]) -> tuple[str | None, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in VERBS:
            return name, words[length:]
    return None, words


def _run(name: str, words: list[str]) -> int:
    from fewer.core.errors import ConfigError, FewerError
    from fewer.core.progress import make_progress

    words, as_json, config = _take_common(words)
    try:
        if config == "":
            raise ConfigError("--config needs the path of a TOML file")
        verb = VERBS[name]
        module = _import_room(verb.module)
        request = _parse(name, getattr(module, verb.request), words, Path(config) if config else None)
        if request is None:  # --help was asked for and shown
            return 0
        result = getattr(module, verb.function)(request, make_progress("auto"))
    except FewerError as error:
        print(f"fewer {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"fewer {name}: interrupted; what was finished is saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    except MemoryError:
        print(f"fewer {name}: out of memory; try a smaller size, batch or model", file=sys.stderr)
        return 5
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch may not be imported here
            raise
        print(f"fewer {name}: the GPU is out of memory; try a smaller size or batch", file=sys.stderr)
        return 5
    _print_result(result, as_json)
    return 0


def _take_common(words: list[str]) -> tuple[list[str], bool, str | None]:
    rest, as_json, config = [], False, None
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--json":
            as_json = True
        elif word == "--config":
            position += 1
            config = words[position] if position < len(words) else ""
        elif word.startswith("--config="):
            config = word.removeprefix("--config=")
        elif word == "--":
            rest.extend(words[position:])
            break
        else:
            rest.append(word)
        position += 1
    return rest, as_json, config


def _import_room(module: str) -> typing.Any:
    from fewer.core.errors import FileError

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "fewer":
            raise
        room = module.split(".")[1]
        message = f"this verb needs the package {error.name!r}; install it with: pip install 'fewer[{room}]'"
        raise FileError(message, missing=True) from error


def _parse(name: str, cls: type, words: list[str], config: Path | None) -> typing.Any:
    import tyro

    from fewer.core.config import validate
    from fewer.core.errors import ConfigError

    defaults = {"default": _defaults_from(cls, config)} if config else {}
    shown, complaint = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaint):
            # A dictionary (`settings`) comes from a file alone: no subcommand may be made of it.
            options = (tyro.conf.AvoidSubcommands,)
            request = tyro.cli(cls, prog=f"fewer {name}", args=words, config=options, **defaults)
    except SystemExit as stop:
        if not stop.code:
            print(shown.getvalue(), end="")
            return None
        raise ConfigError(_first_sentence(complaint.getvalue(), name)) from None
    return validate(cls, request)


def _defaults_from(cls: type, config: Path) -> object:
    import tyro
    from pydantic import TypeAdapter, ValidationError

    from fewer.core.config import describe, read_toml
    from fewer.core.errors import ConfigError

    given = {key.replace("-", "_"): value for key, value in read_toml(config).items()}
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise ConfigError(f"{config.name!r} sets {', '.join(unknown)}; allowed: {', '.join(sorted(fields))}")
    values = {}
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if key in given:
            try:
                values[key] = TypeAdapter(hints[key]).validate_python(given[key])
            except ValidationError as error:
                raise ConfigError(f"{config.name!r}, {key}: {describe(error)}") from error
        elif required:
            values[key] = tyro.MISSING
    return cls(**values)


def _first_sentence(box: str, name: str) -> str:
    """tyro draws its complaints in a box; the contract wants one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯─-_ \t") for line in box.splitlines()]
    kept = []
    for line in lines[1:]:
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        if line:
            kept.append(line)
    text = " ".join(kept) or "the options could not be read"
    return f"{text}; see: fewer {name} --help"


def _print_result(result: Mapping[str, object], as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        return  # of torchrun's processes the first speaks
    if as_json:
        print(json.dumps(result, default=str, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fewer.core.readable import parts_of, readable

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in result.items():
        parts = parts_of(value)
        table.add_row(key, Text("" if parts else readable(value), overflow="fold"))
        for name, part in parts:
            table.add_row(f"  {name}", Text(readable(part), overflow="fold"))
    Console(stderr=True, highlight=False).print(table)
