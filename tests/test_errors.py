import errno
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from noisybsd.errors import (
    LONGEST,
    UserError,
    brief,
    command,
    did_you_mean,
    is_out_of_gpu_memory,
    shown,
)


def test_did_you_mean_names_the_value_the_nearest_and_all_options() -> None:
    assert did_you_mean("bds", ["bsd", "ce"]) == "got 'bds', did you mean bsd? valid: bsd, ce"
    assert did_you_mean("xyz", ["bsd", "ce"]) == "got 'xyz'; valid: bsd, ce"


def test_another_word_is_taken_for_no_typo() -> None:
    assert did_you_mean("elr", ["bsd", "ce"]) == "got 'elr'; valid: bsd, ce"
    assert did_you_mean("zebra", ["deer", "frog"]) == "got 'zebra'; valid: deer, frog"


def test_a_users_mistake_is_a_message_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(arguments: list[str]) -> int:
        raise UserError("first\nsecond")

    assert main([]) == 2
    assert capsys.readouterr() == ("", "error: first\nerror: second\n")


def test_our_own_mistakes_keep_their_traceback() -> None:
    @command
    def main(arguments: list[str]) -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        main([])


def test_a_gpu_without_room_is_told_from_other_errors() -> None:
    full = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError(
            "CUDA error: out of memory\nCUDA kernel errors might be reported later"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ]
    assert all(map(is_out_of_gpu_memory, full))
    assert not is_out_of_gpu_memory(RuntimeError("CUDA error: an illegal memory access"))


def test_an_interrupt_before_there_is_anything_to_save(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    assert main([]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = (
        "import sys\nfrom noisybsd.errors import command\n"
        "@command\ndef main(a):\n    [print('x' * 1000) for _ in range(1000)]\n    return 0\n"
        "sys.exit(main([]))"
    )
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    os.read(read, 100)
    os.close(read)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_names_are_shown_on_one_line_of_what_a_terminal_prints() -> None:
    assert shown("Füße 猫 – 2×3") == "Füße 猫 – 2×3"
    assert shown("a\x1b[2J\r\nb\udce9\u202ec") == r"a\x1b[2J\r\nb\udce9\u202ec"


def test_a_long_value_is_repeated_in_part() -> None:
    assert brief("abc") == "'abc'"
    assert brief(torch.eye(2)) == "tensor([[1., 0.], [0., 1.]])"  # on one line
    text = brief("x" * 5000)
    assert len(text) < 210 and " … " in text


def test_a_message_holds_no_control_characters_and_no_endless_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @command
    def main(arguments: list[str]) -> int:
        raise UserError("caf\udce9\x1b[31m: not there\n" + "x" * 10 * LONGEST)

    assert main([]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == r"error: caf\udce9\x1b[31m: not there"
    assert len(second) < LONGEST + 20


def test_a_name_in_a_log_is_escaped(caplog: pytest.LogCaptureFixture) -> None:
    command(lambda arguments: 0)([])
    log = logging.getLogger("noisybsd")
    log.propagate = True
    log.warning("left out: %s", "\x1b[2J\udcff.png")
    assert caplog.messages == [r"left out: \x1b[2J\udcff.png"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "there/x"),
            "there/x: Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "output: No space left on device"),
        (MemoryError("Unable to allocate 8 TiB"), "out of memory: Unable to allocate 8 TiB"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore"),
            "out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory",
        ),
    ],
)
def test_what_the_system_refuses_is_a_sentence(
    error: Exception, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main(arguments: list[str]) -> int:
        raise error

    assert main([]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {says}"


# a program that prints, more than a pipe or a buffer holds where asked to
_PRINTS = """
import sys
from noisybsd.errors import command
@command
def main(arguments):
    print("\\udce9 \u00d7\\n" * int(arguments[0]))
    return 0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 2, r"error: output: No space left on device\n"),
        (">/dev/full 2>/dev/full", 2, ""),
    ],
)
@pytest.mark.parametrize("count", [1, 100000])
def test_an_output_that_cannot_be_written(
    count: int, redirection: str, code: int, error: str
) -> None:
    ended = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {count} {redirection}', sys.executable, _PRINTS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
    )
    assert (ended.returncode, bool(re.fullmatch(error, ended.stderr))) == (code, True), ended.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_output_of_another_encoding_takes_every_name(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(
        [sys.executable, "-c", _PRINTS, "1"], capture_output=True, cwd=ROOT, env=environment
    )
    assert ended.returncode == 0 and ended.stderr == b""
    assert ended.stdout.startswith(b"\\udce9 ")


def test_a_closed_output_is_no_place_for_files() -> None:
    # the number of a closed stream would be the next file's, into which libraries would print
    program = (
        "import sys, os, tempfile\nfrom noisybsd.errors import command\n"
        "@command\ndef main(a):\n"
        "    with tempfile.TemporaryFile() as file:\n        return 3 * (file.fileno() < 3)\n"
        "sys.exit(main([]))"
    )
    shell = f"'{sys.executable}' -c \"$0\" <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", shell, program], cwd=ROOT).returncode == 0
