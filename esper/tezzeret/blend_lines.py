"""What the joined kernels of the last region have that its plain ones have not: the blend of its value into the host.

    residual  host + alpha v
    convex    host + alpha (v - host)

Formulas and their order are those of the op `blend`, esper/ops/blend.py, in float32 and rounded once, to the host's
type. v is not rounded to its own type before that, which the op could not avoid. alpha is read from the seed's row on
the device; `convex` and `sums` are numbers at run time.
"""

NOTE = (  # in the file's docstring
    "\n\nThe joined kernels blend the last value into the host: v{value}_ptr is where that is written,\n"
    "and d{value}_ptr its gradient."
)
HELPER = '''@triton.jit
def blended(host, v, alpha, convex):
    """host + alpha v, or convex from the nearer end: alpha 0 gives the host and alpha 1 gives v, exactly."""
    step = tl.where(alpha < 0.5, alpha, alpha - 1.0)
    between = tl.where(alpha < 0.5, host, v) + step * (v - host)
    return tl.where(convex != 0, between, host + alpha * v)
'''
READ = ("host_ptr", "alpha_ptr")
SETTINGS = {"joined_forward": ("convex",), "joined_backward": ("convex", "sums")}
WRITTEN = {"joined_forward": (), "joined_backward": ("dhost_ptr", "alpha_sums_ptr")}

_HOST = "tl.load(host_ptr + at, mask=inside{also}, other=0).to(tl.float32)"


def forward_lines(value: int) -> list[str]:
    """After the steps: v<value> becomes what is written in its place."""
    return [
        f"    host = {_HOST.format(also='')}",
        "    alpha = tl.load(alpha_ptr)",
        f"    v{value} = blended(host, v{value}, alpha, convex)",
    ]


def backward_lines(value: int) -> list[str]:
    """Before the steps' gradients: from d<value>, that of what was written, those of host and alpha, and v<value>'s.

    The residual form's gradient of the host is d<value> itself. Where alpha has no gradient, `sums` 0, the host is not
    read; in the residual form neither: it counts as 0 there.
    """
    d, v = f"d{value}", f"v{value}"
    return [
        "    alpha = tl.load(alpha_ptr)",
        "    if convex != 0:",
        f"        tl.store(dhost_ptr + at, ({d} - alpha * {d}).to(dhost_ptr.dtype.element_ty), mask=inside)",
        "    if sums != 0:",
        f"        host = {_HOST.format(also=' & (convex != 0)')}",
        f"        along = tl.where(inside, {d} * ({v} - host), 0.0)",
        "        tl.store(alpha_sums_ptr + tl.program_id(0), tl.sum(tl.sum(along, axis=1), axis=0))",
        f"    {d} = alpha * {d}",
    ]
