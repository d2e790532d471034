"""Steering: what a policy's neurons write, directions to push it, and when and how hard."""

from mistjax.steer.affine import AffineMap, affine_map
from mistjax.steer.artifact import SteeringArtifact, load_steering, save_steering
from mistjax.steer.build import BOARD_CONCEPTS, build_vectors, write_vectors
from mistjax.steer.concepts import Concept, concept_table, control_neurons, find_concept
from mistjax.steer.effects import (
    DoseResponse,
    control_responses,
    dose_response,
)
from mistjax.steer.groups import observation_group, outcome_groups
from mistjax.steer.policy import SteeredPolicy, load_steered
from mistjax.steer.schedules import Schedule, constant
from mistjax.steer.table import CauseTable, cause_table
from mistjax.steer.value_vectors import TopNames, top_names, value_vectors
from mistjax.steer.vectors import (
    NeuronOverwrite,
    Provenance,
    SteeringVector,
    concept_vector,
    difference_of_means,
    overwrite_concept,
)

__all__ = [
    "BOARD_CONCEPTS",
    "AffineMap",
    "CauseTable",
    "Concept",
    "DoseResponse",
    "NeuronOverwrite",
    "Provenance",
    "Schedule",
    "SteeredPolicy",
    "SteeringArtifact",
    "SteeringVector",
    "TopNames",
    "affine_map",
    "build_vectors",
    "cause_table",
    "concept_table",
    "concept_vector",
    "constant",
    "control_neurons",
    "control_responses",
    "difference_of_means",
    "dose_response",
    "find_concept",
    "load_steered",
    "load_steering",
    "observation_group",
    "outcome_groups",
    "overwrite_concept",
    "save_steering",
    "top_names",
    "value_vectors",
    "write_vectors",
]
