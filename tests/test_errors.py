import os
import subprocess
import sys

import pytest
import torch

from noisybsd.errors import UserError, command, did_you_mean, is_out_of_gpu_memory


def test_did_you_mean_names_the_value_the_nearest_and_all_options() -> None:
    assert did_you_mean("bds", ["bsd", "ce"]) == "got 'bds', did you mean bsd? valid: bsd, ce"
    assert did_you_mean("xyz", ["bsd", "ce"]) == "got 'xyz'; valid: bsd, ce"


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
