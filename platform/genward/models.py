"""Tables of the registry. Timestamps are seconds since the epoch, UTC; lists are JSON text; no secret is ever here."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created", Float, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("prefix", Text, primary_key=True),
    Column("hash", LargeBinary, nullable=False),  # HMAC-SHA256(pepper, secret)
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False, index=True),
    Column("roles", Text, nullable=False),
    Column("label", Text, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("actions", Text, nullable=False, default="[]"),  # scopes: empty is not narrowed
    Column("models", Text, nullable=False, default="[]"),
    Column("networks", Text, nullable=False, default="[]"),  # CIDR; empty is anywhere
    Column("parent", Text),  # prefix of the key it was made from: it is worth no more, and falls with it
    Column("created_by", Text, nullable=False, default=""),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False, index=True),
    Column("rows", BigInteger, nullable=False),
    Column("parents", Text, nullable=False, default="[]"),
    Column("created", Float, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("digest", Text),
    Column("stage", Text, nullable=False),  # registering, ready, retired
    Column("owner", Text, nullable=False, default=""),  # who is registering: host:pid:start, to sweep what a crash left
    Column("candidate", Text, nullable=False, default=""),
    Column("tenants", Text, nullable=False, default="[]"),
    Column("created", Float, nullable=False),
    UniqueConstraint("name", "version"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("version", Integer, nullable=False),
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("subject", Text, nullable=False, index=True),
    Column("actor", Text, nullable=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("subject", "actor"),
)

pools = Table(
    "pools",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("slots", BigInteger, primary_key=True),
    Column("statement", Text, nullable=False),  # signed; see genward.pool
    Column("created", Float, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("stage", Text, nullable=False),  # validated, approved, active, superseded
    Column("proposed_by", Text, nullable=False),
    Column("proposed", Float, nullable=False),
    Column("approved_by", Text),
    Column("approved", Float),
    Column("activated_by", Text),
    Column("activated", Float),
)

changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
