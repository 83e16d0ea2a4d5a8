"""The command line: one visible dict from verb to room, and the rules that hold for every verb.

`fewer VERB [OPTIONS]` imports the verb's module, reads its request dataclass (`core/options.py`), runs the
verb, and prints its result: a table for people, or with `--json` exactly one JSON object on standard output.
"""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOBase


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
    "reconstruct": Verb(
        "fewer.generate.command_reconstruct", "ReconstructRequest", "reconstruct_command",
        "a picture through the autoencoder and back, with PSNR and SSIM",
    ),
    "train sana": Verb(
        "fewer.generate.training.command", "TrainSanaRequest", "train_sana_command",
        "a text-to-image transformer, on your pictures or on composed emoji",
    ),
    "train lora": Verb(
        "fewer.generate.training.command", "TrainLoraRequest", "train_lora_command",
        "an adapter that teaches a model a subject or a style from a few pictures",
    ),
    "train style": Verb(
        "fewer.generate.training.command_style", "TrainStyleRequest", "train_style_command",
        "generated weights (CAN) that teach a model a drawing style from some fifty pictures",
    ),
    "train few-steps": Verb(
        "fewer.generate.training.command_few_steps", "TrainFewStepsRequest", "train_few_steps_command",
        "a model that draws in twenty steps -> one that draws in two",
    ),
    "train large": Verb(
        "fewer.generate.training.command_large", "TrainLargeRequest", "train_large_command",
        "an edition of the built-in model that draws twice the side",
    ),
    "train autoencoder": Verb(
        "fewer.generate.command_train_autoencoder", "TrainAutoencoderRequest", "train_autoencoder_command",
        "a deep compression autoencoder on your own pictures, in three phases",
    ),
    "train class-conditional": Verb(
        "fewer.generate.command_train_class_conditional", "TrainClassConditionalRequest",
        "train_class_conditional_command",
        "pictures of classes from labelled pictures, with weights that follow the class (CAN)",
    ),
    "quantize": Verb(
        "fewer.quantize.command", "QuantizeRequest", "quantize_command",
        "a 16-bit model to 4 bits",
    ),
    "convert": Verb(
        "fewer.quantize.command_convert", "ConvertRequest", "convert_command",
        "checkpoints from form to form",
    ),
    "learn semi-supervised": Verb(
        "fewer.learn.command_semi_supervised", "SemiSupervisedRequest", "semi_supervised_command",
        "a classifier from a few labels and many pictures without",
    ),
    "learn invariant": Verb(
        "fewer.learn.command_invariant", "InvariantRequest", "invariant_command",
        "a classifier for domains it has never seen, beside plain training",
    ),
    "learn predict": Verb(
        "fewer.learn.command_predict", "PredictRequest", "predict_command",
        "the classes of pictures",
    ),
    "learn evaluate": Verb(
        "fewer.learn.command_evaluate", "EvaluateRequest", "evaluate_command",
        "accuracy and calibration of a model, or what a distilled set teaches",
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
        "fewer.learn.distillation.command_merge", "ExportRequest", "export_command",
        "a distilled file -> .npz, PNG folder, page or datasheet",
    ),
    "learn import": Verb(
        "fewer.learn.distillation.command_import", "ImportRequest", "import_command",
        "a set made by the field's published code -> a distilled file",
    ),
    "learn indicator": Verb(
        "fewer.learn.distillation.command_indicator", "IndicatorRequest", "indicator_command",
        "is distilling worth it? asked of random subsets beforehand",
    ),
    "learn variation": Verb(
        "fewer.learn.distillation.command_variation", "VariationRequest", "variation_command",
        "several data sets distilled together against one by one",
    ),
    "recommend train": Verb(
        "fewer.recommend.command", "TrainRequest", "train_command",
        "learn what comes next from interactions",
    ),
    "recommend search": Verb(
        "fewer.recommend.command", "SearchRequest", "search_command",
        "find the length of short-term interest",
    ),
    "recommend evaluate": Verb(
        "fewer.recommend.command_serving", "EvaluateRequest", "evaluate_command",
        "full-ranking figures of a model",
    ),
    "recommend suggest": Verb(
        "fewer.recommend.command_serving", "SuggestRequest", "suggest_command",
        "next items for histories",
    ),
    "recommend export": Verb(
        "fewer.recommend.command_serving", "ExportRequest", "export_command",
        "ONNX encoder, vectors, index",
    ),
    "recommend update": Verb(
        "fewer.recommend.command", "UpdateRequest", "update_command",
        "go on learning from new interactions",
    ),
    "stitch": Verb(
        "fewer.stitch.command", "StitchRequest", "stitch_command",
        "an endoscopy video becomes one map of the tube",
    ),
    "serve": Verb(
        "fewer.serve.command", "ServeRequest", "serve_command",
        "a server: page, OpenAI and ComfyUI doors, queue",
    ),
    "bench": Verb(
        "fewer.bench", "BenchRequest", "bench_command",
        "the published figures, each with its peer",
    ),
    "info": Verb(
        "fewer.core.info", "InfoRequest", "info_command",
        "versions, devices, kernels, models found",
    ),
}
# fmt: on

EXIT_INTERRUPTED = 130
OUT_OF_MEMORY = "out of memory; try a smaller size, batch or model"
EXTRAS = ("stitch", "learn", "recommend", "serve")
"""Rooms that need packages which a plain installation does not bring."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code: 0, or that of the error (design: 2, 3, 4, 5, 130)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries tell their programmers is not for users
    if not words or words[0] in ("-h", "--help", "help"):
        return _write_out(_overview())
    if words[0] in ("-V", "--version"):
        return _write_out(f"fewer {_version()}")
    name, rest = _split_verb(words)
    if name is None and len(words) == 2 and words[1] in ("-h", "--help") and _verbs_of(words[0]):
        return _write_out(_overview(_verbs_of(words[0])))
    if name is None:
        return _complain("", _unknown_verb(words), 2)
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


def _unknown_verb(words: list[str]) -> str:
    import difflib

    siblings = _verbs_of(words[0])
    given = " ".join(words[:2]) if siblings else words[0]
    near = difflib.get_close_matches(given, VERBS, n=1)
    meant = f"; perhaps you meant {near[0]!r}" if near else ""
    return f"{given!r} is not a verb; allowed: {', '.join(siblings or VERBS)}{meant}"


def _split_verb(words: list[str]) -> tuple[str | None, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in VERBS:
            return name, words[length:]
    return None, words


def _run(name: str, words: list[str]) -> int:
    from fewer.core.errors import FewerError
    from fewer.core.options import parse_request, take_common
    from fewer.core.progress import make_progress

    try:
        common = take_common(words)
        verb = VERBS[name]
        module = importlib.import_module(verb.module)
        cls, about = getattr(module, verb.request), f"{verb.help[0].upper()}{verb.help[1:]}."
        request, page = parse_request(name, cls, common.rest, common.config, about)
        if request is None:
            return _write_out(page)
        result = getattr(module, verb.function)(request, make_progress("auto"))
    except FewerError as error:
        return _complain(name, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "fewer").split(".")[0] == "fewer":
            raise
        return _complain(name, _what_is_missing(name, error), 4)
    except KeyboardInterrupt:
        return _complain(name, "interrupted; what was finished is saved", EXIT_INTERRUPTED)
    except MemoryError:
        return _complain(name, OUT_OF_MEMORY, 5)
    except OSError as error:  # a disk that filled up, a folder that may not be read, a name that is too long
        return _complain(name, _what_failed(error), 4 if isinstance(error, FileNotFoundError) else 2)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; torch may not be imported here
            return _complain(name, "the GPU is out of memory; try a smaller size or batch", 5)
        if "DefaultCPUAllocator" in str(error):  # torch's too, a plain RuntimeError
            return _complain(name, OUT_OF_MEMORY, 5)
        raise
    return _print_result(result, common.as_json)


def _complain(name: str, message: str, code: int) -> int:
    if sys.stderr is not None:  # else nobody reads; the exit code still tells
        with _at_any_rate(sys.stderr):  # pyright: ignore[reportArgumentType]
            print(" ".join(f"fewer {name}".split()) + f": {message}", file=sys.stderr)
    return code


def _what_failed(error: OSError) -> str:
    given = f" {os.path.basename(os.fsdecode(error.filename))[:80]!r}" if error.filename else ""
    return f"cannot use the file or folder{given}: {error.strerror or error}; try another path"


def _what_is_missing(name: str, error: ModuleNotFoundError) -> str:
    """Verbs of a room that brings packages of its own are named after it, as the extra is."""
    room = name.split()[0]
    wanted = f"'fewer[{room}]'" if room in EXTRAS else str(error.name).split(".")[0]
    return f"this verb needs the package {error.name!r}; install it with: pip install {wanted}"


def _print_result(result: Mapping[str, object], as_json: bool) -> int:
    if os.environ.get("RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        return 0  # of torchrun's processes the first speaks
    from fewer.core.readable import json_line

    if as_json:
        return _write_out(json_line(result, getattr(sys.stdout, "encoding", None) or "utf-8"))
    if sys.stderr is not None:
        with _at_any_rate(sys.stderr):  # pyright: ignore[reportArgumentType]
            _print_table(result)
    return 0


def _print_table(result: Mapping[str, object]) -> None:
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


def _write_out(text: str) -> int:
    """Standard output, whatever it is: a reader that has gone is no error, a full disk is one."""
    out = sys.stdout
    if out is None:  # the shell closed it (>&-)
        return 0
    encoding = out.encoding or "utf-8"
    with _at_any_rate(out) as errors:  # pyright: ignore[reportArgumentType]
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=out)
    if errors and not isinstance(errors[0], BrokenPipeError):
        return _complain("", f"standard output cannot be written: {errors[0].strerror}", 2)
    return 0


@contextlib.contextmanager
def _at_any_rate(stream: TextIOBase) -> Iterator[list[OSError]]:
    """What cannot be written inside is told in the list."""
    from fewer.core.progress import drop_unwritten

    errors: list[OSError] = []
    try:
        yield errors
        stream.flush()
    except OSError as error:
        errors.append(error)
        drop_unwritten(stream)
