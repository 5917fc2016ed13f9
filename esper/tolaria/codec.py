"""Tolaria's messages <-> what its decisions read."""

import json

from esper.api.common.v1 import training_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.blueprint.codec import write_interface
from esper.host.sites import Site
from esper.tolaria.task import TaskReference


def read_task(msg: training_pb2.TaskReference) -> TaskReference:
    arguments = json.loads(msg.arguments_json) if msg.arguments_json else {}
    return TaskReference(msg.factory, arguments, tuple(msg.import_paths))


def write_task(reference: TaskReference) -> training_pb2.TaskReference:
    return training_pb2.TaskReference(
        factory=reference.factory,
        arguments_json=json.dumps(reference.arguments, sort_keys=True) if reference.arguments else "",
        import_paths=reference.import_paths,
    )


def write_site(site: Site, slots: int) -> state_pb2.SiteState:
    return state_pb2.SiteState(
        name=site.name,
        layer_kind=site.layer_kind,
        interface=write_interface(site.interface),
        slots=slots,
        parameter_count=site.parameter_count,
        positions=site.positions,
    )
