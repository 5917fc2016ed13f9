"""Compile one blueprint for one interface: the same inputs and toolchain give the same artifact anywhere."""

import hashlib
from collections.abc import Mapping

import torch

from esper.artifact import canonical_json
from esper.artifact.agree import check_agreement
from esper.artifact.attest import BUILT
from esper.artifact.body import EXPORTED, GRAPH, MODULE, PIPELINES, TARGETS, WEIGHTS, Body, ParameterEntry
from esper.artifact.bundle import Artifact, bundle, sign
from esper.artifact.contents import write_graph_file, write_weights_file
from esper.artifact.keys import SigningKey
from esper.artifact.script import load_script, save_script
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.emit import emit_function, torchscript
from esper.blueprint.infer import infer
from esper.blueprint.initialise import initialise
from esper.blueprint.interface import Interface
from esper.blueprint.ir import VERSION, Graph
from esper.blueprint.lower import Lowered, lower
from esper.blueprint.plan import plan
from esper.errors import InvalidBlueprint, InvalidRequest, KernelFault, Unavailable
from esper.tezzeret.check import CostLimits, check
from esper.tezzeret.exported import export_graph
from esper.tezzeret.interpreted import check_interpreted
from esper.tezzeret.kernels import MACHINE_CODE, machine_code_files, source_files, triton_version
from esper.tezzeret.regions import find_regions
from esper.tezzeret.search import Timer, search

# Raised with every change to what the forge makes of the same blueprint.
RECIPE = "2"
# Random seed of the reference weights that evaluation measures with; a graft draws its own.
WEIGHTS_SEED = 0


def toolchain(pipeline: str = "fast") -> dict[str, str]:
    """Versions of all that decides the bytes of a pipeline's artifacts."""
    versions = {"torch": str(torch.__version__), "operators": str(VERSION), "recipe": RECIPE}
    return versions if pipeline == "fast" else {**versions, "triton": triton_version() or "absent"}


def request_key(
    blueprint: str, interface: Interface, target: str, pipeline: str, versions: Mapping[str, str] | None = None
) -> str:
    """Digest of what a compilation depends on. Equal keys, equal artifact; `versions` None: this toolchain."""
    fields = {
        "blueprint_id": blueprint,
        "interface": str(interface),
        "pipeline": pipeline,
        "target": target,
        "toolchain": dict(toolchain(pipeline) if versions is None else versions),
    }
    return hashlib.sha256(canonical_json.write(fields)).hexdigest()


def compile_kernel(
    graph: Graph,
    interface: Interface,
    target: str,
    pipeline: str,
    key: SigningKey,
    limits: CostLimits = CostLimits(),  # noqa: B008  frozen
) -> Artifact:
    """Build a kernel and sign it "built". Raises as `build`."""
    return sign_built(build(graph, interface, target, pipeline, limits), key, target, pipeline)


def sign_built(artifact: Artifact, key: SigningKey, target: str, pipeline: str) -> Artifact:
    """`artifact` with the forge's word that it made these bytes."""
    return sign(artifact, key, BUILT, {"pipeline": pipeline, "target": target, "toolchain": toolchain(pipeline)})


def build(
    graph: Graph,
    interface: Interface,
    target: str,
    pipeline: str,
    limits: CostLimits = CostLimits(),  # noqa: B008  frozen
    timer: Timer | None = None,
) -> Artifact:
    """check -> lower -> emit -> TorchScript -> compare with the reference; not signed. standard: then Triton kernels.

    aggressive: standard's kernels, of which it chooses the tiles; `timer` may have the word on the best of them.
    Raises InvalidBlueprint (the static check, with every reason), Unavailable (a pipeline or target this
    release does not build for) and KernelFault (the compiled form is not the reference).
    """
    check_request(target, pipeline)
    fine, reasons = check(graph, interface, limits)
    if not fine:
        raise InvalidBlueprint("; ".join(reasons))
    module = reference(graph, interface)
    script = save_script(torchscript(emit_function(graph, interface, "forward")))
    check_agreement(graph, interface, load_script(script, len(module.parameter_names)))
    files = {
        GRAPH: write_graph_file(graph),
        WEIGHTS: write_weights_file(module.state_dict()),
        MODULE: script,
    }
    if pipeline != "fast":
        files[EXPORTED] = export_graph(module)
        try:
            files |= _kernel_files(module, files[GRAPH], target, pipeline, timer)
        except KernelFault as error:
            raise KernelFault(f"pipeline {pipeline}: {error}") from error
    return bundle(_body(module, target, pipeline), files)


def _kernel_files(
    module: Lowered, graph_file: bytes, target: str, pipeline: str, timer: Timer | None
) -> dict[str, bytes]:
    """Source, description and machine code of the regions' kernels, compared with the reference in their tiles."""
    concrete = plan(module.graph, module.interface)
    regions, _ = find_regions(concrete)
    sources = source_files(regions, concrete)
    if pipeline == "aggressive":
        files = {**sources, **search(regions, concrete, sources, target, timer)}
    else:
        files = {**sources, **machine_code_files(regions, concrete, sources, target)}
    if regions:
        check_interpreted({GRAPH: graph_file, **files}, module.interface)
    return files


def target_of(pipeline: str, target: str) -> str:
    """What a forge for `target` compiles a pipeline for: TorchScript counts as the CPU's, and runs anywhere."""
    return "cpu" if pipeline == "fast" else target


def check_request(target: str, pipeline: str) -> None:
    """Raises InvalidRequest for words nobody knows, Unavailable for what is not built yet; names the remedy."""
    if pipeline not in PIPELINES or target not in TARGETS:
        raise InvalidRequest(
            f"pipeline {pipeline!r} for target {target!r}: pipelines are {', '.join(PIPELINES)}; "
            f"targets are {', '.join(TARGETS)}"
        )
    if pipeline != "fast" and target not in MACHINE_CODE:
        runs_on = ", ".join(MACHINE_CODE)
        raise Unavailable(
            f"pipeline {pipeline} makes Triton kernels, which run on {runs_on}; for {target} ask for fast"
        )
    if pipeline != "fast" and not triton_version():
        raise Unavailable(
            f"pipeline {pipeline} needs Triton: pip install 'esper[triton]' for the forge, or ask for fast"
        )
    if pipeline == "fast" and target != "cpu":
        raise Unavailable(
            f"pipeline fast makes no kernels for {target}; ask for cpu: it makes TorchScript, which runs wherever its "
            "tensors are"
        )


def reference(graph: Graph, interface: Interface) -> Lowered:
    """The lowering with the reference weights."""
    module = lower(graph, interface)
    initialise(module, torch.Generator().manual_seed(WEIGHTS_SEED))
    return module


def _body(module: Lowered, target: str, pipeline: str) -> Body:
    """The body but for its files."""
    parameters = zip(module.parameter_names, module.ordered_parameters(), strict=True)
    return Body(
        blueprint_id=blueprint_id(module.graph),
        interface=module.interface,
        target=target,
        pipeline=pipeline,
        forward_flops_per_position=infer(module.graph, module.interface).forward_flops_per_position,
        parameters=tuple(ParameterEntry(name, tuple(p.shape), p.dtype) for name, p in parameters),
        files={},
        toolchain=toolchain(pipeline),
    )
