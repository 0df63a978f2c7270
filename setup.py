"""Builds the package and its compiled operations; the metadata stands in pyproject.toml.

`tasks/` and `criterions/` lie at the top level of the repository and become subpackages of `rt_plugin`.

Two libraries are built ahead of time where that is possible, `rt_plugin._C` (CPU) and `rt_plugin._C_cuda`. Both use
torch's stable ABI and nothing of Python's, so one file serves every Python and every torch from 2.10 on. torch itself
is not imported and need not be built for CUDA. An isolated build, which sees no torch, gives a package without them,
and the operation then runs in plain PyTorch.

    RT_BUILD_CPU          0: no, 1: yes or fail, auto (default): where torch and a C++ compiler are found
    RT_BUILD_CUDA         0: no, 1: yes or fail, auto (default): where a CUDA toolkit is found that is no newer than
                          the CUDA that torch has
    CUDA_HOME             the toolkit (default: where nvcc is found, or /usr/local/cuda)
    TORCH_CUDA_ARCH_LIST  for which GPUs (default: 7.5;8.0;8.6;8.9;9.0+PTX)
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # it would say of the licence: "2 matches found"
    raise SystemExit(
        f"setup.py: error: setuptools {setuptools.__version__} is installed, expected 77 or later; "
        "run: pip install 'setuptools>=77'"
    )

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("rt_plugin", "csrc")
X86 = platform.machine().lower() in ("x86_64", "amd64")

# The interface of torch 2.10: without it the library would ask for symbols that only the torch at hand has.
TORCH_TARGET = ("TORCH_TARGET_VERSION", "0x020A000000000000")
# Never -march=native (the library must run elsewhere) and never -ffast-math (linked, it changes the whole process).
COMMON_FLAGS = ["-std=c++17", "-fvisibility=hidden", "-fPIC", "-g0"]
# Clang says of every loop that is written in vectors already that it cannot vectorise it; GCC does not know the option.
QUIET_FLAGS = ["-Wno-pass-failed", "-Wno-unknown-warning-option"]
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", *QUIET_FLAGS]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
if platform.system() != "Darwin":
    AVX512_FLAGS += ["-Wno-maybe-uninitialized"]  # false alarms in GCC's own header, thousands of lines
FLAGS = {  # source: flags
    "cpu.cpp": ["-O2"],
    "cpu_binding.cpp": ["-O2"],
    "cpu_rows_baseline.cpp": KERNEL_FLAGS,
}
X86_FLAGS = {
    "cpu_rows_avx2.cpp": [*KERNEL_FLAGS, "-mavx2", "-mfma", "-mf16c"],
    "cpu_rows_avx512.cpp": [*KERNEL_FLAGS, *AVX512_FLAGS],
    "cpu_rows_avx512bf16.cpp": [*KERNEL_FLAGS, *AVX512_FLAGS, "-mavx512bf16", "-Wno-unused-function"],
}
CUDA_FLAGS = {"cuda.cu": ["-O3"], "cuda_binding.cpp": ["-O2"]}
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0+PTX"


class CannotBuild(Exception):
    """What is missing, in one line."""


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuild("no torch in the build environment; install it first, then use --no-build-isolation")
    return Path(spec.submodule_search_locations[0])


def cuda_folder() -> Path:
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    for folder in filter(None, candidates):
        if Path(folder, "bin", "nvcc").is_file() and Path(folder, "include", "cuda_runtime.h").is_file():
            return Path(folder)
    raise CannotBuild(
        "no CUDA toolkit (bin/nvcc, include/cuda_runtime.h) in CUDA_HOME, around the nvcc on PATH or in /usr/local/cuda"
    )


def cuda_runtime(cuda: Path) -> list[str]:
    """The linker's options for the CUDA runtime; NVIDIA's packages for pip have `lib`, its installers `lib64`."""
    return [*(f"-L{cuda / folder}" for folder in ("lib64", "lib")), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def architecture_flags(architectures: str) -> list[str]:
    """nvcc's options for a list like "8.0;9.0+PTX"."""
    flags = []
    for architecture in architectures.replace(" ", ";").split(";"):
        number = architecture.removesuffix("+PTX").replace(".", "")
        if not architecture:
            continue
        if not number.rstrip("af").isdigit():
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST holds {architecture!r}, expected numbers like 8.0 or 9.0+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def wanted(option: str) -> str:
    value = os.environ.get(option, "auto").lower()
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"setup.py: error: {option} is {value!r}, expected 0, 1 or auto")
    return value


class BuildOperations(build_ext):
    """Compiles every source with flags of its own; leaves out what cannot be built, unless it was asked for."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            option = "RT_BUILD_CUDA" if extension.name.endswith("_cuda") else "RT_BUILD_CPU"
            try:
                self.build_operation(extension)
            except Exception as error:  # what compilers raise has no common base
                if wanted(option) == "1":
                    raise SystemExit(f"setup.py: error: {option}=1, but {error}") from error
                print(f"setup.py: {extension.name} is left out: {error}", file=sys.stderr)

    def build_operation(self, extension: Extension) -> None:
        torch = torch_folder()
        compiler = (getattr(self.compiler, "compiler_cxx", None) or ["c++"])[0]
        if shutil.which(compiler) is None:
            raise CannotBuild(f"there is no C++ compiler ({compiler})")
        cuda = cuda_folder() if extension.name.endswith("_cuda") else None
        includes = [str(torch / "include"), *([str(cuda / "include")] if cuda else [])]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: self.compile_source(source, includes, cuda), extension.sources))
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=["torch_cpu", "torch"],
            library_dirs=[str(torch / "lib")],
            extra_preargs=["-Wl,--no-as-needed"] if platform.system() == "Linux" else [],
            extra_postargs=cuda_runtime(cuda) if cuda else [],
            target_lang="c++",
        )

    def compile_source(self, source: str, includes: list[str], cuda: Path | None) -> str:
        name = Path(source).name
        if source.endswith(".cu"):
            return self.compile_cuda(source, cuda)
        flags = {**FLAGS, **X86_FLAGS, **CUDA_FLAGS}[name]
        macros = [TORCH_TARGET, *([("RT_X86_KERNELS", None)] if X86 else [])]
        system_includes = [f"-isystem{folder}" for folder in includes]
        return self.compiler.compile(
            [source], self.build_temp, macros, extra_postargs=[*COMMON_FLAGS, *system_includes, *flags]
        )[0]

    def compile_cuda(self, source: str, cuda: Path) -> str:
        target = Path(self.build_temp, source).with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        architectures = architecture_flags(os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES)
        command = [str(cuda / "bin" / "nvcc"), "-std=c++17", *CUDA_FLAGS[Path(source).name], "--threads=0"]
        command += ["-Xcompiler=-fPIC,-fvisibility=hidden", *architectures, "-c", source, "-o", str(target)]
        print(" ".join(command))
        subprocess.run(command, check=True)
        return str(target)


def operation(name: str, sources: dict[str, list[str]]) -> Extension:
    headers = sorted(str(path) for path in CSRC.glob("*.h"))
    paths = [str(CSRC / source) for source in sources]
    # optional: else setuptools fails to copy a library that was left out into the checkout
    return Extension(f"rt_plugin.{name}", paths, depends=headers, language="c++", py_limited_api=True, optional=True)


def operations() -> list[Extension]:
    """What this build will try. Nothing in a build without torch, whose wheel then fits every machine."""
    try:
        torch_folder()
    except CannotBuild as error:
        for option in ("RT_BUILD_CPU", "RT_BUILD_CUDA"):
            if wanted(option) == "1":
                raise SystemExit(f"setup.py: error: {option}=1, but {error}") from error
        return []
    found = []
    if wanted("RT_BUILD_CPU") != "0":
        found.append(operation("_C", {**FLAGS, **(X86_FLAGS if X86 else {})}))
    if wanted("RT_BUILD_CUDA") == "1" or (wanted("RT_BUILD_CUDA") == "auto" and can_use_cuda()):
        found.append(operation("_C_cuda", CUDA_FLAGS))
    return found


def can_use_cuda() -> bool:
    """Whether there is a toolkit, and a torch that could load what takes it minutes to compile; no GPU is needed."""
    try:
        cuda = cuda_folder()
    except CannotBuild:
        return False
    of_torch = re.search(r"^cuda\b.*= *['\"](\d+)", (torch_folder() / "version.py").read_text(), re.MULTILINE)
    if of_torch is None:
        return False
    said = subprocess.run([cuda / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    of_toolkit = re.search(r"release (\d+)", said)
    if of_toolkit and int(of_toolkit[1]) > int(of_torch[1]):
        # its runtime, which is linked in, may want a newer driver than torch does
        print(
            f"setup.py: rt_plugin._C_cuda is left out: {cuda} is CUDA {of_toolkit[1]}, torch is built for CUDA "
            f"{of_torch[1]}; name a toolkit of that version in CUDA_HOME, or use RT_BUILD_CUDA=1 if the driver is new",
            file=sys.stderr,
        )
        return False
    return True


ext_modules = operations()
setup(
    packages=[*find_packages(include=["rt_plugin", "rt_plugin.*"]), "rt_plugin.tasks", "rt_plugin.criterions"],
    package_dir={"rt_plugin.tasks": "tasks", "rt_plugin.criterions": "criterions"},
    ext_modules=ext_modules,
    cmdclass={"build_ext": BuildOperations},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ext_modules else {},
)
