"""Compile one blueprint for one interface: the same inputs and toolchain give the same artifact anywhere."""

import hashlib
from collections.abc import Mapping

import torch

from esper.artifact import canonical_json
from esper.artifact.agree import check_agreement
from esper.artifact.attest import BUILT
from esper.artifact.body import GRAPH, MODULE, PIPELINES, TARGETS, WEIGHTS, Body, ParameterEntry
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
from esper.errors import InvalidBlueprint, InvalidRequest, Unavailable
from esper.tezzeret.check import CostLimits, check

# Raised with every change to what the forge makes of the same blueprint.
RECIPE = "1"
# Random seed of the reference weights that evaluation measures with; a graft draws its own.
WEIGHTS_SEED = 0


def toolchain() -> dict[str, str]:
    """Versions of all that decides an artifact's bytes."""
    return {"torch": str(torch.__version__), "operators": str(VERSION), "recipe": RECIPE}


def request_key(
    blueprint: str, interface: Interface, target: str, pipeline: str, versions: Mapping[str, str] | None = None
) -> str:
    """Digest of what a compilation depends on. Equal keys, equal artifact; `versions` None: this toolchain."""
    fields = {
        "blueprint_id": blueprint,
        "interface": str(interface),
        "pipeline": pipeline,
        "target": target,
        "toolchain": dict(toolchain() if versions is None else versions),
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
    return sign(artifact, key, BUILT, {"pipeline": pipeline, "target": target, "toolchain": toolchain()})


def build(
    graph: Graph,
    interface: Interface,
    target: str,
    pipeline: str,
    limits: CostLimits = CostLimits(),  # noqa: B008  frozen
) -> Artifact:
    """check -> lower -> emit -> TorchScript -> compare with the reference; not signed.

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
    return bundle(_body(module, target, pipeline), files)


def check_request(target: str, pipeline: str) -> None:
    """Raises InvalidRequest for words nobody knows, Unavailable for what is not built yet; names the remedy."""
    if pipeline not in PIPELINES or target not in TARGETS:
        raise InvalidRequest(
            f"pipeline {pipeline!r} for target {target!r}: pipelines are {', '.join(PIPELINES)}; "
            f"targets are {', '.join(TARGETS)}"
        )
    if pipeline != "fast":
        raise Unavailable(f"pipeline {pipeline} makes Triton kernels, which this release does not; ask for fast")
    if target != "cpu":
        raise Unavailable(
            f"no kernels are compiled for {target} in this release; ask for cpu: pipeline fast makes TorchScript, "
            "which runs wherever its tensors are"
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
        toolchain=toolchain(),
    )
