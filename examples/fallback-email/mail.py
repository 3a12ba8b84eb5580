"""Send a mail for each push that its user has not got: `python mail.py [KEY]` (pip install aio-pika).

It listens to push.fallback with the routing key KEY (mail.#), and sends to SMTP_SERVER=host:port; else it prints them.
"""

import asyncio
import json
import os
import smtplib
import sys
from email.message import EmailMessage

import aio_pika

KEY = sys.argv[1] if len(sys.argv) > 1 else "mail.#"
SERVER = os.environ.get("SMTP_SERVER", "")


def mail_of(push: dict[str, object], message_id: str) -> EmailMessage:
    """A real system looks up the address of the user, and words the mail for the event."""
    mail = EmailMessage()
    mail["From"] = "bridge@example.com"
    mail["To"] = f"{push['user']}@example.com"
    mail["Subject"] = f"You have missed: {push['event']}"
    # The same for a fallback that comes twice: a mail server may know it again, too.
    mail["Message-ID"] = f"<{message_id}@example.com>"
    mail.set_content(json.dumps(push["data"], ensure_ascii=False, indent=2))
    return mail


def send(mail: EmailMessage) -> None:
    if not SERVER:
        print(mail, flush=True)
        return
    host, _, port = SERVER.partition(":")
    with smtplib.SMTP(host, int(port or 25), timeout=30) as smtp:
        smtp.send_message(mail)
    print("sent to", mail["To"], flush=True)


async def main() -> None:
    sent: set[str] = set()  # a real system keeps them in its database
    connection = await aio_pika.connect_robust(os.environ["BRIDGE_AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(10)
        queue = await channel.declare_queue("mails", durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind("push.fallback", KEY)
        print("waiting for", KEY, flush=True)
        async with queue.iterator() as messages:
            async for message in messages:
                message_id = message.message_id or ""
                async with message.process(requeue=True):  # back to the queue where no mail could be sent
                    if message_id not in sent:
                        await asyncio.to_thread(send, mail_of(json.loads(message.body), message_id))
                        sent.add(message_id)


asyncio.run(main())
