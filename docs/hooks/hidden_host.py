"""Show functions as users call them: the host, their first argument, is filled in."""

import griffe


class HiddenHost(griffe.Extension):
    """Take the parameter away that ``attnflow_plugin.hosts.bound`` fills in."""

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        """Called with every function, whether it is shown or not."""
        if func.parameters and func.parameters[0].name == "host":
            del func.parameters["host"]
