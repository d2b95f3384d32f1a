"""What a finished run says at its end."""

from typing import Any

from ray_jobs.config import Config
from ray_jobs.runs import RunFolder


def summary_lines(config: Config, folder: RunFolder) -> list[str]:
    return [
        *verdict_lines(folder),
        f"serve it   SERVING_REGISTRY={config.registry} serve run serving.app:app",
    ]


def verdict_lines(folder: RunFolder) -> list[str]:
    report = folder.read_json("report/report.json")
    return [
        "",
        f"decision   {report['decision']}: {report['reason']}",
        f"judge      {judge_line(report)}",
        f"checks     {checks_line(report)}",
        f"report     {folder.address}/report/report.html",
    ]


def judge_line(report: dict[str, Any]) -> str:
    trust = report["judge_trust"] or {}
    if report["mean_difference"] is None:
        return "no score for both models"
    low, high = report["ci95"] or (float("nan"), float("nan"))
    trusted = "trusted" if trust.get("trusted") else "not trusted"
    return (
        f"candidate minus base {report['mean_difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f}) "
        f"on {report['num_scored_both']} prompts; judge {trusted}"
    )


def checks_line(report: dict[str, Any]) -> str:
    overall = (report.get("program_checks") or {}).get("overall")
    if not overall:
        return "no prompt has a check that a program can make"
    shares = f"base {overall['base']:.1%}, candidate {overall['candidate']:.1%}"
    return f"right answers, checked by a program: {shares} of {overall['n']}"
