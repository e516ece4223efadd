"""The names of IP-Adapters: ours are those of the published safetensors, flat where the older files nest."""

from __future__ import annotations

from limner.weights.layout import Rule

PUBLISHED = (Rule("image_proj.{}", "image_proj.{}"), Rule("ip_adapter.{}", "ip_adapter.{}"))
