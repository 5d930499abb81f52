"""A student that calls tools, taught by a stronger model on its own multi-turn rollouts.

    python tools.py                      # Qwen3-0.6B and Qwen3-1.7B from the hub; a GPU

TRL runs the tools and masks what they return; the teacher scores the tokens that the student generated, and no others.
This works for methods whose teacher reads the student's own prompt (opd, exopd, scope) and for the GRPO family. Methods
that rewrite the prompt for the teacher (opsd, sdpo, srpo) refuse tools.
"""

from datasets import Dataset

from trl_opd import OPDConfig, OPDTrainer


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        The sum.
    """
    return a + b


def make_trainer(model="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-1.7B", processing_class=None, **options) -> OPDTrainer:
    settings = {
        "output_dir": "runs/tools",
        "max_completion_length": 512,
        "max_tool_calling_iterations": 2,
        "max_steps": 50,
    }
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {a}{b}{a} + {b}{a}{b}?"}]}
        for a in range(1, 9)
        for b in range(9)
    ]
    return OPDTrainer(
        model=model,
        args=OPDConfig(**settings | options),
        train_dataset=Dataset.from_list(rows),
        processing_class=processing_class,
        teacher_model=teacher,
        tools=[add],
    )


if __name__ == "__main__":
    make_trainer().train()
