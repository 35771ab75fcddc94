"""Print requirements.lock: every package of the Python that runs this, pinned, with what it is for where it matters."""

from importlib.metadata import distributions

LINUX = ' ; platform_system == "Linux" and platform_machine == "x86_64"'  # CUDA, and the compiler for it
POSIX = ' ; platform_system != "Windows"'
LEFT_OUT = {"pip", "cxrclip"}


def condition(name: str) -> str:
    """The marker of a package that is not for every machine, else nothing."""
    if name.startswith(("nvidia-", "cuda-")) or name == "triton":
        return LINUX
    return POSIX if name in ("pexpect", "ptyprocess") else ""


found = {dist.metadata["Name"].lower().replace("_", "-").replace(".", "-"): dist.version for dist in distributions()}
for name in sorted(found.keys() - LEFT_OUT):
    print(f"{name}=={found[name].split('+')[0]}{condition(name)}")
