"""`ct-enhance INPUT OUTPUT`: the inference workflow for people who want no configs."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.commands.run import run_workflow
from bundle.configuration import bundle_root, flag
from bundle.errors import BundleError, ExitCode
from bundle.overrides import MONAI_OPTIONS, CommandLine, check_options, load_config, parse_command_line
from bundle.progress import set_quiet

_SWITCHES = ("quiet", "json", "dry_run")  # ours; every other option is a key of the config
_TOLD = ("settings", "weights_sha256", "software_version", "failed")
# What only folders of series have a use for. What args_file holds is among the options already.
_NOT_FOR_VIDEOS = (MONAI_OPTIONS - {"args_file"}) | {
    *("dataset_dir", "output_dir", "max_samples", "shard", "select_description", "select_kernel"),
    *("select_thickness_mm", "gaps", "save_nifti", "report", "tolerate_bad_series", "series_suffix"),
    *("transfer_syntax", "pipelined", "scratch_dir"),
}


def enhance(arguments: Sequence[str]) -> int:
    """Restore the series below `arguments[0]` into `arguments[1]`; the rest are switches and keys of the config.

    Returns:
        The exit code that the workflow set, 0 when it set none.

    Raises:
        BundleError: when INPUT or OUTPUT is missing or something else is wrong.
    """
    folders = list(arguments[:2])
    if len(folders) < 2 or any(folder.startswith("--") for folder in folders):
        raise BundleError("INPUT and OUTPUT are required", hint="ct-enhance INPUT OUTPUT [--key value ...]")
    rest = parse_command_line(arguments[2:])
    if rest.positionals:
        raise BundleError(f"unexpected argument '{rest.positionals[0]}'", hint="options are written --key value")
    options = dict(rest.options)
    switches = {name: flag(options.pop(name, False)) for name in _SWITCHES}
    if switches["quiet"]:
        set_quiet(True)
        logging.disable(logging.INFO)
    if Path(folders[1]).suffix.lower() == ".mp4":
        return _video(folders[0], Path(folders[1]), options, switches)
    # The folders bypass the parser of options, which would read a folder called 2024 as a number.
    options = {
        "config_file": str(Path(bundle_root()) / "configs" / "inference.yaml"),
        **options,
        "dataset_dir": folders[0],
        "output_dir": folders[1],
    }
    line = CommandLine(("inference",), options)
    if switches["dry_run"]:
        return _dry_run(line, as_json=switches["json"])
    code = run_workflow(line, quiet=switches["quiet"])
    if switches["json"]:
        print(json.dumps(_summary(Path(folders[1]), options.get("shard")), indent=2))
    return code


def _video(source: str, target: Path, options: dict[str, Any], switches: Mapping[str, bool]) -> int:
    import functools

    from bundle.networks.precision import prepare_cpu
    from bundle.restoration.api import load_restorer
    from bundle.restoration.video import is_video_input, restore_video

    if not is_video_input(source):
        raise BundleError("an MP4 as OUTPUT needs a video or a folder of pictures as INPUT", hint="name a folder")
    if switches["dry_run"]:
        raise BundleError("a video has no plan: it is restored at once", hint="leave --dry_run out")
    for name in options:
        if name in _NOT_FOR_VIDEOS:
            raise BundleError(f"--{name} has no effect for a video", hint="leave it out")
    sizes = {"window": 2, "video_spacing_mm": 3, "frames_per_second": 1}
    given = {name: _numbers(name, options.pop(name), count) for name, count in sizes.items() if name in options}
    prepare_cpu(options.pop("threads", 0))
    rename = {"window": "window", "video_spacing_mm": "spacing_mm"}
    said = restore_video(
        source,
        target,
        functools.partial(load_restorer(**options), progress=True),
        frames_per_second=given.pop("frames_per_second", (10.0,))[0],
        **{rename[name]: value for name, value in given.items()},  # type: ignore[arg-type] # counted above
    )
    if switches["json"]:
        print(json.dumps({"output": target.name, "loss": said}))
    elif not switches["quiet"]:
        print(f"{target.name} is {said}")
    return ExitCode.DONE


def _numbers(name: str, value: object, count: int) -> tuple[float, ...]:
    """`count` numbers of an option, the last one (a width, a distance, a rate) above 0.

    Raises:
        BundleError: when it holds something else.
    """
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    numbers = tuple(float(one) for one in values if isinstance(one, int | float))
    if len(numbers) != count or len(values) != count or not numbers[-1] > 0:
        raise BundleError(f"{name} must be {count} number{'s' if count > 1 else ''}, the last above 0, not {value}")
    return numbers


def _dry_run(line: CommandLine, *, as_json: bool) -> int:
    from bundle.commands.plan import make_plan, spoken

    keys = {key: value for key, value in line.options.items() if key != "config_file"}
    check_options(keys, load_config(line.config_files))
    plan = make_plan(line.config_files, keys)
    print(json.dumps(plan, indent=2) if as_json else spoken(plan))
    return ExitCode.DONE


def _summary(output_dir: Path, shard: str | None) -> dict[str, Any]:
    """The run's summary without what it keeps private: source paths and UIDs."""
    from bundle.restoration.outputs import summary_file

    try:
        summary = json.loads(summary_file(output_dir, shard).read_text())
    except (OSError, ValueError):
        return {}
    series = {key: {"status": one["status"], **one.get("result", {})} for key, one in summary["series"].items()}
    refused = [{"key": one["key"], "reason": one["reason"]} for one in summary["refused"]]
    return {**{key: summary[key] for key in _TOLD}, "series": series, "refused": refused}
