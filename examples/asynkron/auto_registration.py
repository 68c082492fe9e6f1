"""All flows of a module registered at once. Steps need no registration."""

import asyncio
import sys
import tempfile
from dataclasses import dataclass

from perdure import Engine, flow, step


@dataclass(frozen=True)
class Customer:
    email: str


@dataclass(frozen=True)
class Campaign:
    customers: list[Customer]


@step(name="SendPersonalizedEmail")
async def send_personalized_email(customer: Customer) -> None:
    print(f"Sending email to {customer.email}")


@flow(name="EmailCampaignOrchestrator")
async def email_campaign(campaign: Campaign) -> str:
    for customer in campaign.customers:
        await send_personalized_email(customer)
    return f"Sent {len(campaign.customers)} emails!"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[sys.modules[__name__]]) as engine:
            campaign = Campaign([Customer("ada@example.com"), Customer("bob@example.com")])
            print(await engine.run("EmailCampaignOrchestrator", campaign, id="spring"))


if __name__ == "__main__":
    asyncio.run(main())
