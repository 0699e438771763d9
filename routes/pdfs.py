"""What a PDF that stands in a request holds.

How many pages it has shows in no field, and what compresses well is small: held by its bytes, one may cost more than it held,
once, before the budget knows. Only a whole context would be sure, and small plans do not have the price of one; so how much is held
is the operator's to say.
"""

from proxy.surface import Option, Pricing

AS_ITS_BYTES = "0"


def pdf_option(variable: str) -> Option:
    """The setting of one surface."""
    return Option(
        variable,
        AS_ITS_BYTES,
        "Input tokens that each PDF in a request holds at least: one of few bytes may have hundreds of pages, and overspend a budget "
        "once. 0: what its bytes say.",
        unit="tokens",
    )


def more_pdf_tokens(pricing: Pricing, variable: str, pdfs: int, pdf_chars: int) -> int:
    """What is held beyond the length of the body, of which `pdf_chars` are in so many PDFs."""
    wanted = pdfs * int(pricing.options.get(variable) or AS_ITS_BYTES)
    return max(0, wanted - -(-pdf_chars // pricing.bytes_per_token))
