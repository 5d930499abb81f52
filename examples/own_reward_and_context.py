"""SDPO with a reward function and a context function of one's own.

The context function says what the teacher reads for each rollout. This one shows it the shortest right answer of the
group, where SDPO shows the first.

    python own_reward_and_context.py

or from the command line, in the folder of this file:

    trl-opd train sdpo --config own_reward_and_context.yaml --output_dir runs/own
"""

from datasets import Dataset

from trl_opd import SDPOConfig, SDPOTrainer, testbed


def right_and_short(completions: list, answer: list[str], **_) -> list[float]:
    """1 for the right answer, less a little for every character."""
    texts = [completion[0]["content"] for completion in completions]
    right = [f"\\boxed{{{a}}}" in text for text, a in zip(texts, answer, strict=True)]
    return [max(1.0 - 0.005 * len(text), 0.5) if ok else 0.0 for text, ok in zip(texts, right, strict=True)]


def shortest_success(question: str, siblings: list, **_) -> str | None:
    """What the teacher reads in place of the question; None where there is nothing to tell it."""
    right = [sibling.text for sibling in siblings if sibling.reward >= 0.5]
    return f"Example:\n{min(right, key=len)}\nAgain:\n{question}" if right else None


def main() -> None:
    config = SDPOConfig(
        output_dir="runs/own_reward_and_context",
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=48,
        support_size=20,
        max_steps=2,
        learning_rate=2e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = SDPOTrainer(
        model=str(testbed.model_path("base")),
        reward_funcs=right_and_short,
        args=config,
        train_dataset=Dataset.from_list(testbed.rows("train", 256)),
        teacher_context=shortest_success,
    )
    trainer.train()


if __name__ == "__main__":
    main()
