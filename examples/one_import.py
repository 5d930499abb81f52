"""A GRPO script: a model, a reward function, a configuration. Model and data are small ones that come with trl_opd."""

from datasets import Dataset
from trl_opd import SDPOConfig as GRPOConfig, SDPOTrainer as GRPOTrainer

from trl_opd import testbed


def boxed_answer(completions, answer, **_):
    return [float(f"\\boxed{{{a}}}" in completion[0]["content"]) for completion, a in zip(completions, answer)]


config = GRPOConfig(
    output_dir="runs/script",
    per_device_train_batch_size=32,
    num_generations=8,
    max_completion_length=48,
    max_steps=2,
    learning_rate=2e-5,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=False,
)
trainer = GRPOTrainer(
    model=str(testbed.model_path("base")),
    reward_funcs=boxed_answer,
    args=config,
    train_dataset=Dataset.from_list(testbed.rows("train", 256)),
)
trainer.train()
