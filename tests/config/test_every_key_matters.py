"""A key that nothing reads is worse than no key: for every one, the test that shows its effect.

`SHOWN_BY` maps a key, or a section whose keys one test covers, to `FILE::FUNCTION` under tests/.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from distill.config.fields import schema

TESTS = Path(__file__).parents[1]

SHOWN_BY = {
    "name": "training/test_training_keys.py::test_the_name_is_the_folder",
    "seed": "data/test_loader.py::test_seed_and_epoch_change_the_views",
    "data.source": "data/test_sources.py::test_open_source_by_kind",
    "data.scenes.size": "data/scenes/test_render.py::test_a_scene_looks_the_same_at_every_size",
    "data.scenes.count": "data/scenes/test_source.py::test_is_a_source_of_complete_samples",
    "data.scenes.seed": "data/scenes/test_source.py::test_splits_and_seeds_are_different_streams",
    "data.scenes.cache": "training/test_hardware_keys.py::test_cached_scenes_are_drawn_once",
    "data.shards": "data/test_sources.py::test_open_source_by_kind",
    "data.shuffle": "data/test_order.py::test_a_window_mixes_runs_from_the_whole_source",
    "data.epoch": "data/test_order.py::test_epochs_of_another_size_go_on_through_the_passes",
    "data.workers": "training/test_hardware_keys.py::test_loader_processes",
    "data.decoder": "data/test_loader.py::test_the_decoder_is_the_one_asked_for",
    "data.max_error_rate": "training/test_hardware_keys.py::test_too_many_unreadable_samples_stop_a_run",
    "captions.cls1": "data/test_captions.py::test_the_draw_depends_on_the_epoch",
    "captions.cls2": "data/test_captions.py::test_one_cls_token",
    "captions.fallback": "data/test_captions.py::test_fallback_for_a_missing_field",
    "views.global_size": "data/test_loader.py::test_shapes_and_length",
    "views.local_size": "data/test_loader.py::test_shapes_and_length",
    "views.locals": "data/test_loader.py::test_shapes_and_length",
    "views.global_scale": "views/test_crops.py::test_each_kind_of_crop_has_its_own_area",
    "views.local_scale": "views/test_crops.py::test_each_kind_of_crop_has_its_own_area",
    "views.flip": "views/test_crops.py::test_flips_follow_their_probability",
    "mask.ratio": "views/test_masks.py::test_the_count_is_the_nearest_possible_one",
    "mask.kind": "views/test_masks.py::test_blocks_are_clumped",
    "teacher.mode": "training/test_modes.py::test_self_teachers_share_exactly_what_they_say",
    "teacher.source": "training/test_model_keys.py::test_the_source_is_the_teacher",
    "teacher.meet": "teachers/test_meeting.py::test_targets_lie_where_the_students_patches_lie",
    "teacher.arch": "training/test_model_keys.py::test_a_cotrained_teacher_has_its_own_shape",
    "teacher.depth": "training/test_model_keys.py::test_a_cotrained_teacher_has_its_own_shape",
    "teacher.tokens": "training/test_model_keys.py::test_a_cotrained_teacher_supervises_its_own_tokens",
    "teacher.lr": "training/test_model_keys.py::test_a_cotrained_teacher_has_its_own_learning_rate",
    "teacher.cache.path": "training/test_keep_targets.py::test_runs_that_fill_and_that_read_are_the_run_without",
    "teacher.cache.epochs": "training/test_keep_targets.py::test_the_teacher_sees_each_view_once",
    "teacher.cache.dtype": "training/test_keep_targets.py::test_halves_change_the_targets_a_little",
    "teacher.cache.limit": "training/test_keep_targets.py::test_a_cache_too_large_is_refused_first",
    "teacher.shard": "training/test_sharding.py::test_a_sharded_teacher_gives_the_same_targets",
    "teacher.heads.kind": "training/test_teacher_heads.py::test_kinds_are_own_fitted_and_trained",
    "teacher.heads.steps": "training/test_teacher_heads.py::test_more_steps_see_more_batches",
    "teacher.heads.entropy": "training/test_teacher_heads.py::test_entropy_sets_the_temperature",
    "teacher.momentum": "training/test_model_keys.py::test_the_average_moves_by_its_momentum",
    "students.*.name": "training/test_model_keys.py::test_students_are_known_by_their_names",
    "students.*.arch": "students/test_build.py::test_parameter_counts_are_the_papers",
    "students.*.depth": "students/test_build.py::test_every_recipe_key_reaches_the_model",
    "students.*.init": "students/test_initialisation.py::test_teacher_copies_the_vision_tower_alone",
    "students.*.layers": "students/test_initialisation.py::test_layers_takes_the_chosen_blocks_and_all_else",
    "students.*.ema": "training/test_spare.py::test_the_average_is_that_of_the_weights_after_each_step",
    "students.*.freeze": "training/test_model_keys.py::test_frozen_towers_are_not_optimised",
    "vision": "students/test_build.py::test_every_recipe_key_reaches_the_model",
    "vision.kernels": "students/test_build.py::test_kernels_of_the_blocks_start_as_asked",
    "text.init": "students/test_initialisation.py::test_text_from_the_teacher",
    "text.freeze": "training/test_model_keys.py::test_frozen_towers_are_not_optimised",
    "text.layers": "students/test_build.py::test_every_recipe_key_reaches_the_model",
    "text.context": "data/test_loader.py::test_long_captions_are_cut_and_counted",
    "text.dropout": "training/test_model_keys.py::test_dropout_acts_on_texts_in_training",
    "text.tokenizer": "models/tokenizers/test_build.py::test_clip_and_sentencepiece_leave_the_captions_unread",
    "text.vocabulary": "models/tokenizers/test_build.py::test_words_are_learnt_from_the_captions_up_to_the_vocabulary",
    "heads": "training/test_model_keys.py::test_heads_have_the_sizes_asked_for",
    "objective.patch.weight": "training/test_objective_keys.py::test_weights_of_the_losses",
    "objective.patch.tokens": "training/test_objective_keys.py::test_tokens_supervised",
    "objective.patch.target": "training/test_objective_keys.py::test_feature_targets",
    "objective.patch.balance": "training/test_objective_keys.py::test_sinkhorn_evens_out_the_use_of_prototypes",
    "objective.patch.student_temperature": "training/test_objective_keys.py::test_temperatures",
    "objective.patch.teacher_temperature": "training/test_objective_keys.py::test_the_teacher_temperature_rises",
    "objective.cls.weight": "training/test_objective_keys.py::test_weights_of_the_losses",
    "objective.cls.target": "training/test_teacher_heads.py::test_features_of_cls_and_patches_are_regressed",
    "objective.cls.balance": "training/test_objective_keys.py::test_sinkhorn_evens_out_the_use_of_prototypes",
    "objective.cls.student_temperature": "training/test_objective_keys.py::test_temperatures",
    "objective.cls.teacher_temperature": "training/test_objective_keys.py::test_temperatures",
    "objective.contrastive.weight": "training/test_objective_keys.py::test_weights_of_the_losses",
    "objective.contrastive.loss": "training/test_objective_keys.py::test_sigmoid_contrast",
    "objective.contrastive.negatives": "training/test_negatives.py::test_how_many_captions_an_image_is_told_apart_from",
    "objective.contrastive.temperature": "students/test_build.py::test_every_recipe_key_reaches_the_model",
    "objective.contrastive.min_temperature": "training/test_objective_keys.py::test_the_least_temperature",
    "objective.feature_norm": "training/test_teacher_heads.py::test_features_of_cls_and_patches_are_regressed",
    "objective.center_momentum": "training/test_objective_keys.py::test_the_centre_moves_by_its_momentum",
    "optim.name": "training/test_optim.py::test_names_are_optimisers",
    "optim.lr": "training/test_training_keys.py::test_the_learning_rate_of_a_step",
    "optim.weight_decay": "training/test_optim.py::test_weight_decay_alone_shrinks_what_decays",
    "optim.betas": "training/test_optim.py::test_betas_are_those_of_adam",
    "optim.warmup": "training/test_training_keys.py::test_the_learning_rate_of_a_step",
    "optim.schedule": "training/test_training_keys.py::test_the_learning_rate_of_a_step",
    "optim.final": "training/test_training_keys.py::test_the_learning_rate_of_a_step",
    "optim.clip": "training/test_training_keys.py::test_clipping_bounds_the_gradient",
    "optim.layer_decay": "training/test_optim.py::test_layer_decay_is_a_factor_per_block",
    "train.steps": "training/test_training_keys.py::test_steps_rows_and_checkpoints",
    "train.batch": "data/test_loader.py::test_shapes_and_length",
    "train.accumulate": "data/test_loader.py::test_accumulation_only_cuts_the_batch",
    "train.precision": "training/test_hardware_keys.py::test_precision_is_that_of_activations_not_weights",
    "train.accelerator": "training/test_hardware_keys.py::test_accelerator_precision_and_devices",
    "train.devices": "training/test_hardware_keys.py::test_accelerator_precision_and_devices",
    "train.strategy": "training/test_hardware_keys.py::test_strategies",
    "train.checkpointing": "training/test_recompute.py::test_less_is_kept_for_the_backward_pass",
    "train.threads": "training/test_hardware_keys.py::test_threads_as_asked_or_an_even_share_of_the_cores",
    "train.compile": "training/test_compiled.py::test_the_key_compiles_blocks_of_students_and_teacher",
    "train.checkpoint_every": "training/test_training_keys.py::test_steps_rows_and_checkpoints",
    "train.keep": "training/test_training_keys.py::test_steps_rows_and_checkpoints",
    "train.log_every": "training/test_training_keys.py::test_steps_rows_and_checkpoints",
    "train.stage_from": "training/test_run.py::test_second_stage_at_high_resolution_continues_from_a_run",
    "guard.every": "training/test_training_keys.py::test_collapse_is_looked_for_every_so_many_steps",
    "guard.min_entropy": "training/test_training_keys.py::test_limits_of_the_guard_stop_a_run",
    "guard.min_rank": "training/test_training_keys.py::test_limits_of_the_guard_stop_a_run",
    "guard.patience": "training/test_guard.py::test_collapse_needs_patience_in_a_row",
    "eval.settings": "training/test_training_keys.py::test_live_evaluation_with_datasets_of_their_own",
    "eval": "training/test_training_keys.py::test_live_evaluation",
    "log.tensorboard": "training/test_metrics.py::test_tensorboard_events_are_written",
    "log.wandb": "training/test_metrics.py::test_wandb_without_the_extra_says_what_to_install",
}


@lru_cache
def functions(file: str) -> set[str]:
    path = TESTS / file
    if not path.is_file():
        return set()
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def shown_by(key: str) -> str | None:
    """The entry of a key or of the nearest section around it."""
    parts = key.split(".")
    return next((SHOWN_BY[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in SHOWN_BY), None)


def test_every_key_has_a_test_that_shows_its_effect():
    missing = [key for key in schema()[0] if shown_by(key) is None]
    assert missing == [], "name in SHOWN_BY the tests that show what these keys do"


@pytest.mark.parametrize("entry", sorted(set(SHOWN_BY.values())))
def test_the_named_tests_exist(entry):
    file, _, name = entry.partition("::")
    assert name in functions(file), f"tests/{file} has no test {name}"


@pytest.mark.parametrize("name", SHOWN_BY)
def test_no_entry_is_out_of_date(name):
    leaves, sections = schema()
    assert name in leaves or name in sections
