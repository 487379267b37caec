"""Does a LoRA adapter answer the same beside its base and merged into it?"""

from pathlib import Path

from data_prep.common.files import read_json
from data_prep.models.generation import generate_answers
from data_prep.models.loading import load_checkpoint
from data_prep.models.merging import BOUND, logit_difference, why_merging_differs
from eval.diagnosis.run_settings import settings_of
from eval.serving_checks.answers import Expected, answer_logits, largest, token_logprobs
from eval.serving_checks.rows import REFUSED, Row

CHECK = "adapter and merged"


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / "adapter_config.json").exists()


def adapter_of_training(folder: str) -> str | None:
    """The checkpoint below a model's folder that holds the adapter which was merged into it; None where there is none.

    That is the last one of the training, or the best one where the recipe kept that.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit() and is_adapter(path)]
    if not found or is_adapter(folder):
        return None
    last = max(found, key=lambda path: int(path.name[11:]))
    state = read_json(last / "trainer_state.json")
    if settings_of(folder).get("load_best_model_at_end"):
        best = Path(folder) / Path(state.get("best_model_checkpoint") or "none").name
        return str(best) if is_adapter(best) else None
    return str(last) if state["global_step"] >= state["max_steps"] else None


def adapter_row(expected: Expected, model, adapter: str, tolerance: float) -> Row:
    """The adapter on its base, as transformers loads it, against `model`, into which it was merged."""
    beside, _ = load_checkpoint(adapter)
    return _compared(expected, beside, model, beside, tolerance)


def merged_row(expected: Expected, model, adapter: str, tolerance: float) -> Row:
    """The adapter merged into its base, against `model`, which is the adapter on its base."""
    from peft import PeftModel  # slow to import

    base, _ = load_checkpoint(str(read_json(Path(adapter) / "adapter_config.json")["base_model_name_or_path"]))
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()
    return _compared(expected, model, merged, merged, tolerance)


def _compared(expected: Expected, beside, merged, other, tolerance: float) -> Row:
    """The row of two models, the adapter on its base and merged; `other` is the one whose answers are not those expected."""
    rows = [each.get_input_embeddings().weight.shape[0] for each in (beside, merged)]
    if rows[0] != rows[1]:
        detail = f"resized vocabulary: the adapter's base has {rows[0]:,} tokens, the merged model {rows[1]:,}"
        return Row(CHECK, REFUSED, detail, {"vocabulary": rows})
    far, relative, logprobs = [], 0.0, []
    for prompt, answer in zip(expected.ids, expected.answers, strict=True):
        one, two = (answer_logits(each, prompt, answer["ids"]) for each in (beside, merged))
        far.append(one - two)
        relative = max(relative, logit_difference(one, two))
        logprobs.append(token_logprobs(one if other is beside else two, answer["ids"]))
    answers = generate_answers(other, expected.tokenizer, expected.prompts, expected.max_new_tokens)
    said = f"largest logit difference {largest(far):.1e}"
    row = expected.row(CHECK, [answer["ids"] for (answer,) in answers], logprobs, tolerance, said)
    figures = {**row.figures, "logit_difference": largest(far), "logit_difference_in_deviations": relative}
    if relative > BOUND:
        why = f"{relative:.2f} of the logits' standard deviation (bound: {BOUND}): serve the adapter on its base; "
        return row._replace(
            status=REFUSED, detail=f"{row.detail}, {why}{why_merging_differs(beside)}", figures=figures
        )
    return row._replace(figures=figures)
