"""Every family of reference arrays is read by a named test, or listed with the reason why not yet."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path

import pytest

G, L = "tests.test_gaussian", "tests.test_losses"
S, D, A = "tests.test_schedule", "tests.test_diffusion", "tests.samplers.test_ancestral"
U, X = "tests.interop.test_diffusers", "tests.interop.test_xdiffusion"
N = "tests.test_likelihood"
B = "tests.samplers"
H = "tests.interop.test_adopt"

# family row -> (test module:function, or a reason), the first pattern that matches the array's name
READ_BY: dict[int, list[tuple[str, str]]] = {
    0: [(".", f"{S}:test_betas_equal_the_peers")],
    1: [(".", f"{S}:test_betas_equal_the_peers")],
    2: [
        ("linear", f"{S}:test_betas_equal_the_peers"),
        ("cosine", f"{S}:test_betas_along_a_curve_equal_the_peers"),
        ("sigmoid", f"{S}:test_sigmoid_differs_from_the_rounded_peer_as_documented"),
    ],
    3: [(".", f"{S}:test_betas_along_a_curve_equal_the_peers")],
    4: [
        ("sigmoid", "a sigmoid in beta, which we do not offer"),
        ("quadratic", f"{S}:test_betas_equal_the_peers"),
        ("cosine", f"{S}:test_betas_along_a_curve_equal_the_peers"),
    ],
    5: [
        ("sigmoid", "a sigmoid in beta, which we do not offer"),
        ("zero_snr", f"{S}:test_zero_terminal_snr_equals_diffusers"),
        (".", f"{S}:test_alpha_bar_equals_diffusers_tables"),
    ],
    6: [
        ("sigmoid", "a sigmoid in beta, which we do not offer"),
        ("zero_snr", f"{S}:test_zero_terminal_snr_equals_diffusers"),
        (".", f"{S}:test_alpha_bar_equals_diffusers_tables"),
    ],
    7: [(".", f"{S}:test_derived_tables")],
    8: [(".", f"{S}:test_respacing_equals_improved_diffusion")],
    9: [(".", f"{D}:test_image_scale")],
    10: [(".", f"{D}:test_image_scale")],
    11: [(".", f"{D}:test_q_sample")],
    12: [(".", f"{D}:test_p_sample")],
    13: [(".", f"{D}:test_q_sample")],
    14: [(".", f"{D}:test_simple_loss")],
    15: [(".", f"{D}:test_q_sample")],
    16: [(".", f"{D}:test_q_sample")],
    17: [(".", f"{D}:test_q_sample")],
    18: [(".", f"{D}:test_posterior")],
    19: [(".", f"{N}:test_prior")],
    20: [(".", f"{D}:test_x0_from_a_prediction")],
    21: [(".", f"{B}.test_ddim:test_noise_from_an_estimate_equals_improved_diffusion")],
    22: [(".", f"{D}:test_x0_from_a_prediction")],
    23: [(".", f"{D}:test_p_variance")],
    24: [(".", f"{D}:test_p_mean_and_x0")],
    25: [(".", f"{D}:test_p_variance")],
    26: [(".", f"{D}:test_p_sample")],
    27: [(".", f"{L}:test_bound_terms")],
    28: [
        (r"\.MSE\..*\.FIXED_(SMALL|LARGE)\.", f"{D}:test_simple_loss"),
        (".", f"{L}:test_recorded_losses"),
    ],
    **{row: [(".", f"{N}:test_recorded_loops")] for row in (29, 30, 31, 33)},
    32: [(".", f"{N}:test_all_recorded_loops_are_read")],
    34: [(".", f"{G}:test_the_tanh_decoder_is_the_peers")],
    35: [(".", f"{G}:test_the_tanh_decoder_is_the_peers")],
    36: [(".", f"{G}:test_the_peers_normal_cdf")],
    37: [(".", f"{G}:test_kl")],
    38: [(".", f"{L}:test_the_analytic_models_are_transcribed_rightly")],
    39: [(".", f"{A}:test_trajectory_equals_improved_diffusion")],
    40: [(".", f"{A}:test_trajectory_equals_improved_diffusion")],
    41: [
        (r"LEARNED_RANGE", f"{A}:test_learned_range_equals_improved_diffusion"),
        (r"full_T25", f"{A}:test_short_chain_with_rescaled_clock_equals_improved_diffusion"),
        (r"^ancestral", f"{A}:test_trajectory_equals_improved_diffusion"),
        (r"^ddim\.", f"{B}.test_ddim:test_trajectory_equals_improved_diffusion"),
        (r"^ddim_reverse", f"{B}.test_ddim:test_inversion_equals_improved_diffusion"),
    ],
    42: [(".", f"{A}:test_trajectory_equals_diffusers")],
    43: [(".", f"{A}:test_trajectory_equals_diffusers")],
    44: [
        (r"^ddpm.*learned_range", f"{A}:test_learned_range_equals_diffusers"),
        (r"^ddpm", f"{A}:test_trajectory_equals_diffusers"),
        (r"^dpm\.", "DPM-Solver in eps, which its peer withdraws; we offer DPM-Solver++"),
        *(
            (rf"^{solver}\.", f"{B}.test_{home}:test_trajectory_equals_diffusers")
            for solver, home in {
                "ddim": "ddim",
                "dpmpp": "dpm_solver",
                "unipc": "unipc",
                "heun": "edm",
                "euler": "edm",
                "pndm": "pndm",
            }.items()
        ),
    ],
    45: [(".", U)],
    46: [(".", U)],
    47: [(".", "tests.interop.test_folder:test_imported_folders_sample_as_recorded")],
    48: [(".", X)],
    49: [(".", X)],
    **{row: [(".", f"{H}:test_the_lessons_checkpoint_samples_by_its_conventions")] for row in (50, 51)},
    52: [
        ("pndm.*v_prediction", "there its multistep rule mixes v of different times; ours mixes eps"),
        (".", f"{B}.test_expected:test_loop_ends_where_diffusers_tests_say"),
    ],
}


def _home(row: int, name: str) -> str:
    for pattern, home in READ_BY[row]:
        if re.search(pattern, name):
            return home
    raise AssertionError(f"array {name} of family {row} is neither read nor listed")


def test_every_array_is_read_or_listed(golden: Path) -> None:
    _, *rows = (line.split("\t") for line in (golden / "ARRAYS.tsv").read_text().splitlines())
    assert len(rows) > 1500
    homes = {_home(int(row[4]), row[1]) for row in rows}
    for home in homes:
        if home.startswith("tests."):
            module, _, function = home.partition(":")
            assert not function or callable(getattr(importlib.import_module(module), function)), home


def test_the_reference_files_are_the_published_ones(golden: Path) -> None:
    sums = (golden / "SHA256SUMS").read_text().splitlines()
    for line in sums:
        digest, name = line.split(maxsplit=1)
        path = golden / name.lstrip("*./")
        if path.suffix == ".npz":
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, name


def test_an_unlisted_array_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="neither read nor listed"):
        _home(2, "betas.lucidrains.new.T1000")
