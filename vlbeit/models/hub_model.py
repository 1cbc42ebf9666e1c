"""A trained model saved as a folder of its own and shared over the Hugging Face hub, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import SoftTemporaryDirectory
from torch import nn

from vlbeit import files, hub
from vlbeit.errors import DataError, UsageError
from vlbeit.models.card import model_card
from vlbeit.models.heads import Heads
from vlbeit.types import Meta

if TYPE_CHECKING:
    from vlbeit.models.model import Model

_FILES = ("*.json", "*.safetensors")


class HubModel:
    """Saving and sharing what `vlbeit.load` gives: the base of `Model`, whose fields these are."""

    description: dict[str, Any]
    config: dict[str, Any]
    meta: Meta
    heads: Heads
    origin: Path | None
    parts: dict[str, nn.Module]

    def save_pretrained(self, folder: str | Path, *, name: str | None = None) -> Path:
        """Write the model as it is now, its numbers (evaluation.json, where its run has one) and a model card.

        A README.md that is there already stays. `name` is the card's title; the folder's name without it.
        """
        from vlbeit.models.checkpoint import save_checkpoint  # which makes models of this class

        folder = Path(folder)
        state = {prefix + key: value for prefix, part in self.parts.items() for key, value in part.state_dict().items()}
        heads = {"heads": self.heads.specs} if "heads" in self.description else {}  # those of plug-ins are not built
        save_checkpoint(folder, state, {**self.description, **heads}, self.config, self.meta)
        evaluation = self.evaluation()
        if evaluation:
            files.write_json(folder / "evaluation.json", evaluation, indent=2)
        if not (folder / "README.md").exists():
            card = model_card(self.description, self.config, evaluation, name or folder.resolve().name)
            files.write_text(folder / "README.md", str(card))
        return folder

    @staticmethod
    def from_pretrained(
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Model:
        """The model of a folder or run, or of a repository `owner/name` of the hub; weights only, no code is run.

        Raises DataError where neither is there.
        """
        from vlbeit.models.checkpoint import load

        if Path(source).exists():
            return load(source)
        try:
            with hub.asked():
                folder = snapshot_download(
                    str(source),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=list(_FILES),
                )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{source} is no folder here, and the hub does not give it: {reason}") from error
        return load(folder)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        message: str = "Upload a model of vlbeit",
    ) -> str:
        """Save the model and upload it to `owner/name`, which is made where it is not there; returns the commit's URL.

        Raises UsageError where the hub refuses: no token, no right to write, no such revision.
        """
        api = HfApi(token=token)
        try:
            made = api.create_repo(repository, private=private, exist_ok=True)
            with SoftTemporaryDirectory() as temporary:
                folder = self.save_pretrained(Path(temporary) / "model", name=made.repo_id)
                commit = api.upload_folder(
                    repo_id=made.repo_id, folder_path=folder, commit_message=message, revision=revision
                )
        except (HfHubHTTPError, HFValidationError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"the hub does not take {repository}: {reason}; `hf auth login` gives a token") from error
        return str(commit)

    def evaluation(self) -> dict[str, Any]:
        """The run's evaluation.json, from the folder that the model was read from or the one above; else empty."""
        if self.origin is None:
            return {}
        places = [self.origin, self.origin.parent] if self.origin.name == "checkpoint" else [self.origin]
        for file in (place / "evaluation.json" for place in places):
            if file.is_file():
                try:
                    return dict(json.loads(file.read_text(encoding="utf-8")))
                except (OSError, ValueError, TypeError) as error:
                    raise DataError(f"{file} cannot be read ({error}): evaluate the run again") from error
        return {}
