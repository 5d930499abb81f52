"""Whether those who are not this process agree with it: a teacher's server or cache, and vLLM."""

from importlib.util import find_spec
from itertools import islice
from typing import Any

from trl_opd.cli.check.plan import Plan, model_config_of
from trl_opd.cli.check.report import Section

#: Seconds in which vLLM's server has to answer.
PATIENCE = 5.0


def parity(plan: Plan) -> Section | None:
    """Probes of the teacher's server or cache, and of vLLM; None where neither is named."""
    from trl_opd import offsite

    lines: list[Any] = []
    warnings: list[str] = []
    facts: dict[str, Any] = {}
    if offsite.place(plan.config):
        facts["teacher"] = _teacher(plan)
        lines.append(facts["teacher"])
    if getattr(plan.config, "use_vllm", False):
        facts["vllm"], warning = _vllm(plan.config)
        lines.append(facts["vllm"])
        warnings += [warning] if warning else []
    return Section("Parity", lines, facts, warnings) if lines else None


def _teacher(plan: Plan) -> str:
    """One line on what the probe found; a copy of the served teacher is compared where one is named."""
    from trl_opd import offsite
    from trl_opd.teachers import load_external

    oracle = offsite.connect(plan.config, plan.objective, plan.tokenizer)
    vocabulary = model_config_of(plan.student).get_text_config().vocab_size
    served = offsite.place(plan.config) == "teacher_server"
    named = plan.config.teacher_model_name_or_path if served else None
    local = None if named is None else load_external(named, plan.config, plan.model.dtype)

    def render(prompts: list) -> list[list[int]]:
        from trl_opd.compat import render_prompts

        template, arguments = plan.teacher_template
        return render_prompts(plan.tokenizer, prompts, template, arguments)

    rows = plan.dataset if not served else list(islice(plan.dataset, offsite.PROBE_ROWS))
    return offsite.prove(oracle, plan.tokenizer, rows, render, vocabulary, local)


def _vllm(config: Any) -> tuple[str, str | None]:
    """A line on vLLM, and a warning if it is not there."""
    if config.vllm_mode == "server":
        return _vllm_server(config)
    later = "vLLM in this process: compared with the trainer's log-probabilities after each copy of the weights"
    if find_spec("vllm") is None:
        return later, "vLLM is not installed here: pip install 'trl-opd[vllm]', see docs/vllm.md."
    return later, None


def _vllm_server(config: Any) -> tuple[str, str | None]:
    import requests

    url = config.vllm_server_base_url or f"http://{config.vllm_server_host}:{config.vllm_server_port}"
    try:
        answer = requests.get(f"{url.rstrip('/')}/health/", timeout=PATIENCE)
        answer.raise_for_status()
    except requests.RequestException as error:
        return f"vLLM's server {url}: no answer", (
            f"vLLM's server {url} does not answer ({type(error).__name__}); start it with trl vllm-serve first."
        )
    return f"vLLM's server {url}: answers; compared with the trainer after each copy of the weights", None
