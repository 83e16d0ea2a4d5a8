"""Samplers, their noise levels, guidance, and the sizes that models were trained on."""

from fewer.generate.sampling.bins import bin_table, nearest_bin, resize_to_cover
from fewer.generate.sampling.guidance import Guidance, guided_velocity
from fewer.generate.sampling.sampler import Method, Step, VelocityFn, sample
from fewer.generate.sampling.schedule import flow_dpm_levels, flow_euler_levels, shift_levels
from fewer.generate.sampling.trigflow import sample_trigflow

__all__ = [
    "Guidance",
    "Method",
    "Step",
    "VelocityFn",
    "bin_table",
    "flow_dpm_levels",
    "flow_euler_levels",
    "guided_velocity",
    "nearest_bin",
    "resize_to_cover",
    "sample",
    "sample_trigflow",
    "shift_levels",
]
