"""Compiled models: each step of a flow runs as one graph, which steps of one structure share."""

from attnflow_plugin.compiling.model import CompilationReport, compile_model

__all__ = ["CompilationReport", "compile_model"]
