"""Attention that stops at the borders of documents, by a mask that is made outside of the model."""

import torch


def document_mask(tokens: torch.Tensor, separator: int | None) -> torch.Tensor | None:
    """Who attends to whom: int64 [B, T] -> bool [B, 1, T, T], True for a token and those before it
    in its document. None without a separator: attention is causal and no more.

    A separator begins the document after it, as it does when a text is written from nothing (Llama
    Team 2024, section 3.2). With rotary positions a document's hidden states are those of a pass of
    its own.
    """
    if separator is None:
        return None
    number = (tokens == separator).cumsum(1)  # [B, T], of each token's document
    is_same = number[:, :, None] == number[:, None, :]  # [B, T, T]
    return is_same.tril_()[:, None]
