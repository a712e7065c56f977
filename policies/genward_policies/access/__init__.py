"""Who may do what, decided by Cedar: deny by default.

`Access` is the policy; `rules.Rules` decides a question, `cedar.text_of` shows the Cedar that a document comes to.
"""

from genward_policies.access.policy import Access

__all__ = ["Access"]
