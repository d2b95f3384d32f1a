"""The verdict: paired statistics on judged answers, the decision rule, and the report."""
