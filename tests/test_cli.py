"""The command line: help that reads well, mistakes that are named, information as JSON."""

import json
import subprocess
import sys

import pytest

import crossmodal
from crossmodal import cli


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "crossmodal.cli", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--help",), ("demo", "info", "bench", "usage: crossmodal")),
        (("demo", "--help"), ("--out DIR", "--seed N", "--quick", "metrics.json", "Ctrl-C")),
        (("info", "--help"), ("--json",)),
        (("bench", "--help"), ("--quick", "--op", "--dtype", "--threads N", "--json FILE", "--compare A.json B.json")),
    ],
    ids=["crossmodal", "demo", "info", "bench"],
)
def test_help_names_what_there_is(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


def test_help_does_not_import_what_a_command_needs():
    script = "import sys, crossmodal.cli\ntry: crossmodal.cli.main(['--help'])\nexcept SystemExit: pass\n"
    script += "print(sorted({'sklearn', 'matplotlib', 'safetensors'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("[]\n")


def test_info_as_json_holds_the_build_info(capsys):
    assert cli.main(["info", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for key, value in crossmodal.build_info().items():
        assert printed[key] == value


def test_info_names_the_active_instruction_set(capsys):
    assert cli.main(["info"]) == 0
    assert crossmodal.build_info()["active_isa"] in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--epochs", "0"),
        ("demo", "--seed", "-1"),
        ("bench", "--op", "atention"),
        ("bench", "--dtype", "int8"),
        ("bench", "--seconds", "0"),
        ("bench", "--margin", "1"),
        ("paint",),
        (),
    ],
    ids=str,
)
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: crossmodal" in capsys.readouterr().err


def test_missing_extra_says_what_to_install(tmp_path):
    script = "import sys; sys.modules['espeakng_loader'] = None; import crossmodal.cli as c; "
    script += f"sys.exit(c.main(['demo', '--quick', '--out', {str(tmp_path)!r}]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'pip install "crossmodal[demo]"' in done.stderr and "Traceback" not in done.stderr
