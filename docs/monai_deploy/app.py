"""A MONAI Deploy application: restores the DICOM series of its input folder into its output folder.

One operator around the bundle's own command, since the bundle reads and writes whole DICOM series by itself.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Operator, OperatorSpec

# In a packaged application the bundle lies among the models, as `python -m bundle pack` wrote it.
PACKED = Path(os.environ.get("HOLOSCAN_MODEL_PATH", "/opt/holoscan/models")) / "ct_enhancement"
if PACKED.is_dir():
    sys.path.insert(0, str(PACKED))

from bundle.commands.main import ct_enhance  # noqa: E402

DONE, PARTIAL = 0, 3  # see the bundle's README: 3, some series were refused or failed


class RestoreOperator(Operator):
    """Restores every CT series below a folder.

    Args:
        fragment: the application.
        input_folder: DICOM, in any nesting.
        output_folder: one folder for each series, and summary.json.
    """

    def __init__(self, fragment: Any, *arguments: Any, input_folder: Path, output_folder: Path, **options: Any) -> None:
        self.input_folder, self.output_folder = input_folder, output_folder
        super().__init__(fragment, *arguments, **options)

    def setup(self, spec: OperatorSpec) -> None:
        """Neither inputs nor outputs: both are folders."""

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Restore the folder; raises RuntimeError when that fails as a whole."""
        code = ct_enhance([str(self.input_folder), str(self.output_folder)])
        if code == PARTIAL:
            logging.getLogger(__name__).warning("some series were refused or failed; see summary.json")
        elif code != DONE:
            raise RuntimeError(f"the restoration ended with exit code {code}")


class RestoreApplication(Application):
    """CT in, derived CT out. Research use only."""

    def compose(self) -> None:
        """One operator, once."""
        context = Application.init_app_context(self.argv)
        restore = RestoreOperator(
            self,
            CountCondition(self, 1),
            input_folder=Path(context.input_path),
            output_folder=Path(context.output_path),
            name="restore",
        )
        self.add_operator(restore)


if __name__ == "__main__":
    RestoreApplication().run()
