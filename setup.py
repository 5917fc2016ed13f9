"""Build csrc/ into esper/ops/libesper_native.so, and nothing else; everything else is in pyproject.toml.

One library holds the CPU code and, where asked for, the CUDA code. It uses PyTorch's stable ABI, so it loads on the
torch it was built with and on later ones, and it contains no Python symbol.

    ESPER_BUILD=0          build nothing: Esper runs on its reference expressions (also the choice without a compiler)
    ESPER_BUILD_CUDA=0|1   leave the CUDA code out, or insist on it; `auto`, the default, takes it where nvcc is found
    TORCH_CUDA_ARCH_LIST   GPU architectures, "8.0;9.0;10.0+PTX" by default
    MAX_JOBS               compilers at once
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "esper/ops/libesper_native.so"
TORCH_TARGET = "0x020a000000000000"  # 2.10: the oldest torch the library must load on


def say(message: str) -> None:
    print(f"esper: {message}", file=sys.stderr, flush=True)


def cuda_home() -> Path | None:
    """The toolkit's folder: the environment's, or found from nvcc, which may be a script elsewhere."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    found = [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    for folder in map(Path, [*named, *found, "/usr/local/cuda"]):
        if (folder / "bin/nvcc").exists() and (folder / "include/cuda_runtime.h").exists():
            return folder
    return None


def choose_cuda() -> Path | None:
    """The toolkit to build with, or None. Exits where ESPER_BUILD_CUDA cannot be met."""
    asked, home = os.environ.get("ESPER_BUILD_CUDA", "auto"), cuda_home()
    if asked not in ("0", "1", "auto"):
        raise SystemExit(f"ESPER_BUILD_CUDA is {asked!r}; it must be 0, 1 or auto")
    if asked == "1" and home is None:
        raise SystemExit("ESPER_BUILD_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME, or ESPER_BUILD_CUDA=0")
    return None if asked == "0" else home


def why_no_build() -> str:
    """Why the library is left out; empty where it is built."""
    if os.environ.get("ESPER_BUILD", "1") == "0":
        return "ESPER_BUILD=0"
    compiler = os.environ.get("CXX", "c++").split()[0]
    return "" if shutil.which(compiler) else f"no C++ compiler ({compiler}); install g++ to have it"


def architectures(home: Path) -> str:
    """Blackwell needs CUDA 12.8."""
    said = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(map(int, re.search(r"release (\d+)\.(\d+)", said).groups()))
    return "8.0;9.0;10.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX"


def extension(cuda: Path | None):
    """The library as an extension of torch's builder. CppExtension: CUDAExtension would link libtorch_cuda."""
    import torch.utils.cpp_extension as torch_build

    target = f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"
    # messages name csrc/..., not a folder of the machine that built them
    nameless = [f"-ffile-prefix-map={p}/=" for p in (*torch_build.include_paths(), ROOT)]
    # the .cpp files of csrc/cuda find NVIDIA's driver when they run, and need no toolkit
    plain = [p for folder in ("", "cpu", "cuda") for p in sorted((ROOT / "csrc" / folder).glob("*.cpp"))]
    sources = [str(p.relative_to(ROOT)) for p in plain]
    cxx, nvcc = ["-O3", "-std=c++17", "-fvisibility=hidden", *nameless, target], []
    link = ["-Wl,--gc-sections", "-s", f"-Wl,--version-script={ROOT}/csrc/exports.map"]
    if cuda:
        torch_build.CUDA_HOME = str(cuda)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures(cuda))
        sources += [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc/cuda").glob("*.cu"))]
        archs = re.sub(r"[;, ]+", "_", os.environ["TORCH_CUDA_ARCH_LIST"]).replace("+", "_")
        cxx.append(f"-DESPER_CUDA_ARCHS={archs}")
        # torch hides the conversions of bf16 and fp16; the kernels use them
        shown = [f"-U__CUDA_NO_{name}__" for name in ("HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF_OPERATORS")]
        nvcc = ["-O3", "-std=c++17", "-Xcompiler", ",".join(["-fvisibility=hidden", *nameless]), *shown, target]
    return torch_build.CppExtension(
        "esper.ops.libesper_native",
        sources,
        depends=[str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*.*h"))],
        py_limited_api=True,  # links no libtorch_python
        include_dirs=[str(cuda / "include")] if cuda else [],
        library_dirs=[str(cuda / "lib64")] if cuda else [],
        libraries=["cudart_static", "rt", "dl", "pthread"] if cuda else ["dl"],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
    )


def builder() -> type[build_ext]:
    from torch.utils.cpp_extension import BuildExtension

    class BuildLibrary(BuildExtension):
        """A library, not a Python module: no ABI tag in its name. Objects stay in build/, so a rebuild is short."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = str(ROOT / "build/native")

        def get_ext_filename(self, ext_name: str) -> str:
            return ext_name.replace(".", "/") + ".so"

    return BuildLibrary


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: the library is for a platform, not for a Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return ("py3", "none", platform)


def build_arguments() -> dict[str, object]:
    if reason := why_no_build():
        say(f"building without the library: {reason}. Every op then runs its reference expression.")
        (ROOT / LIBRARY).unlink(missing_ok=True)  # an old one would be packed, and loaded
        return {}
    cuda = choose_cuda()
    say(f"building {LIBRARY} for cpu" + (f" and cuda ({cuda})" if cuda else "; without cuda"))
    return {"ext_modules": [extension(cuda)], "cmdclass": {"build_ext": builder(), "bdist_wheel": PlatformWheel}}


setup(**build_arguments())
