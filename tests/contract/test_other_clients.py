"""What other people's clients put on the wire, byte for byte: push requests made with them, and their own messages."""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

import msgspec
import pytest

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.decoding import decode_content
from bridge.core.contract.requests import Limits, decode, decode_in_steps
from bridge.core.contract.stepping import finish
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Encoding, Properties, PushRequest, Rejected, ToUser
from bridge.core.ports.broker import Arrival
from tests.support.ports import arrival


class Sent(NamedTuple):
    """A message as a client sent it."""

    header: str
    """Flags and properties of its content header frame (AMQP 0-9-1 4.2.6.1), in hex."""
    body: bytes

    @property
    def properties(self) -> Properties:
        data = struct.pack(">HHQ", 60, 0, len(self.body)) + bytes.fromhex(self.header)
        _, properties, readable = decode_content(data, 0, len(data), False)
        assert readable
        return properties

    @property
    def delivery_mode(self) -> int:
        """1, 2, or 0 where the client sent none."""
        data = bytes.fromhex(self.header)
        (flags,) = struct.unpack_from(">H", data)
        at = 2
        for flag in (0x8000, 0x4000):  # content type and content encoding
            if flags & flag:
                at += 1 + data[at]
        if flags & 0x2000:  # headers
            at += 4 + int.from_bytes(data[at : at + 4])
        return data[at] if flags & 0x1000 else 0

    @property
    def arrival(self) -> Arrival:
        return msgspec.structs.replace(arrival(self.body), properties=self.properties)


# --- recorded: each client published to a socket that spoke AMQP and kept the frames ----------------------


# NestJS: @nestjs/microservices 12.1.1 over amqplib 2.3.1. ClientRMQ.emit and .send as they come, emit with the
# headers of an RmqRecordBuilder, and emit as docs/publishing.md has it.

NEST_EVENT = Sent(
    ("30000000000002"),
    (b'{"pattern":"order.paid","data":{"order":17}}'),
)

NEST_CALL = Sent(
    (
        "360000000000021535393238643333323830626336323136393837376215616d712e7261626269746d712e7265706c792d74"
        "6f"
    ),
    (b'{"pattern":{"cmd":"notify"},"data":{"user":"u42"},"id":"5928d33280bc62169877b"}'),
)

NEST_EVENT_WITH_HEADER = Sent(
    (
        "b080106170706c69636174696f6e2f6a736f6e000000140b782d707573682d75736572530000000375343202086f72646572"
        "2d3137"
    ),
    (b'{"pattern":"order.paid","data":{"order":17}}'),
)

NEST_REQUEST = Sent(
    ("b000106170706c69636174696f6e2f6a736f6e0000000002"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)


# amqplib 2.3.1 for Node: options as docs/publishing.md has them, headers, and no options at all.

AMQPLIB_REQUEST = Sent(
    ("b000106170706c69636174696f6e2f6a736f6e0000000002"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

AMQPLIB_DATA = Sent(
    (
        "b080106170706c69636174696f6e2f6a736f6e000000310b782d707573682d7573657253000000037534320a782d70757368"
        "2d74746c623c0d782d707573682d72657461696e740002086f726465722d3137"
    ),
    (b'{"order":17}'),
)

AMQPLIB_BARE = Sent(
    ("200000000000"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)


# The Java client, amqp-client 5.0.0: PERSISTENT_TEXT_PLAIN, the builder with headers, the former with headers,
# null as properties, and PERSISTENT_BASIC with what an ObjectOutputStream wrote.

JAVA_REQUEST = Sent(
    ("98000a746578742f706c61696e0200"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

JAVA_DATA = Sent(
    (
        "b080106170706c69636174696f6e2f6a736f6e000000410a782d707573682d74746c490000003c13782d707573682d707562"
        "6c69736865642d6d7354000000006b49d2000b782d707573682d75736572530000000375343202086f726465722d3137"
    ),
    (b'{"order":17}'),
)

JAVA_TEXT = Sent(
    ("b8000a746578742f706c61696e000000140b782d707573682d7573657253000000037534320200"),
    (b'{"order":17}'),
)

JAVA_BARE = Sent(
    ("0000"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

JAVA_OBJECT = Sent(
    ("9800186170706c69636174696f6e2f6f637465742d73747265616d0200"),
    (
        b"\xac\xed\x00\x05sr\x00\nSend$Order\x00\x00\x00\x00\x00\x00\x00\x01\x02\x00\x02I\x00\x02idL\x00\x04usert\x00\x12Ljava/lang/String;xp\x00\x00\x00\x11t\x00\x03u42"
    ),
)


# Spring AMQP: its properties, read in its sources (AbstractJackson2MessageConverter.createMessage,
# DefaultJackson2JavaTypeMapper.fromJavaType, SimpleMessageConverter.createMessage, DefaultMessagePropertiesConverter;
# MessageProperties are persistent and of priority 0 by default), put on the wire by the Java client that it uses.

SPRING_REQUEST = Sent(
    (
        "f800106170706c69636174696f6e2f6a736f6e055554462d380000006b115f5f436f6e74656e745479706549645f5f530000"
        "00106a6176612e6c616e672e4f626a6563740a5f5f5479706549645f5f53000000116a6176612e7574696c2e486173684d61"
        "700d5f5f4b65795479706549645f5f53000000106a6176612e6c616e672e4f626a6563740200"
    ),
    (b'{"data":{"order":17},"id":"order-17","to":{"user":"u42"},"event":"order.paid"}'),
)

SPRING_DATA = Sent(
    (
        "f800106170706c69636174696f6e2f6a736f6e055554462d380000007f115f5f436f6e74656e745479706549645f5f530000"
        "00106a6176612e6c616e672e4f626a6563740b782d707573682d7573657253000000037534320a5f5f5479706549645f5f53"
        "000000116a6176612e7574696c2e486173684d61700d5f5f4b65795479706549645f5f53000000106a6176612e6c616e672e"
        "4f626a6563740200"
    ),
    (b'{"order":17}'),
)

SPRING_OBJECT = Sent(
    (
        "f800106170706c69636174696f6e2f6a736f6e055554462d380000002a0a5f5f5479706549645f5f530000001a636f6d2e65"
        "78616d706c652e73686f702e4f72646572506169640200"
    ),
    (b'{"order":17,"user":"u42"}'),
)

SPRING_SERIALIZED = Sent(
    ("b800246170706c69636174696f6e2f782d6a6176612d73657269616c697a65642d6f626a656374000000000200"),
    (
        b"\xac\xed\x00\x05sr\x00\x11java.util.HashMap\x05\x07\xda\xc1\xc3\x16`\xd1\x03\x00\x02F\x00\nloadFactorI\x00\tthresholdxp?@\x00\x00\x00\x00\x00\x01w\x08\x00\x00\x00\x02\x00\x00\x00\x01t\x00\x05orders"
        b"r\x00\x11java.lang.Integer\x12\xe2\xa0\xa4\xf7\x81\x878\x02\x00\x01I\x00\x05valuexr\x00\x10java.lang.Number\x86\xac\x95\x1d\x0b\x94\xe0\x8b\x02\x00\x00xp\x00\x00\x00\x11x"
    ),
)


# kombu 5.7.0 over py-amqp 5.4.2: a dict, with headers, a string, bytes, compression and pickle.

KOMBU_REQUEST = Sent(
    ("f800106170706c69636174696f6e2f6a736f6e057574662d38000000000200"),
    (
        b'{"id": "order-17", "to": {"user": "u42"}, "event": "order.paid", "data": {"order": 17, "na'
        b'me": "Zo\\u00eb"}}'
    ),
)

KOMBU_DATA = Sent(
    (
        "f880106170706c69636174696f6e2f6a736f6e057574662d38000000140b782d707573682d75736572530000000375343202"
        "00086f726465722d3137"
    ),
    (b'{"order": 17}'),
)

KOMBU_TEXT = Sent(
    ("f8000a746578742f706c61696e057574662d38000000140b782d707573682d7573657253000000037534320200"),
    (b"hello"),
)

KOMBU_BYTES = Sent(
    (
        "f800106170706c69636174696f6e2f646174610662696e617279000000140b782d707573682d757365725300000003753432"
        "0200"
    ),
    (b"\x00\xff"),
)

KOMBU_ZIPPED = Sent(
    (
        "f800106170706c69636174696f6e2f6a736f6e057574662d38000000230b636f6d7072657373696f6e53000000126170706c"
        "69636174696f6e2f782d677a69700200"
    ),
    (
        b"x\x9c\xabV\xcaLQ\xb2RP\xca/JI-\xd254W\xd2QP*\xc9\x07\x8aT+\x95\x16\xa7\x16\x81\xa4JM\x8c\x94j\x81\xc2\xa9e\xa9y%p\xb5z\x05\x89@\x9d@\xe1\x94\xc4\x92D\xb0z\xb00\x90eh\x0e\x14\xcdK\xccM\x05\xa9\x8d\xca\x8f)50HMR\xaa\xad\x05\x00q\xcd\x1f"
        b"\x00"
    ),
)

KOMBU_PICKLED = Sent(
    ("f8001e6170706c69636174696f6e2f782d707974686f6e2d73657269616c697a650662696e617279000000000200"),
    (
        b"\x80\x04\x95b\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x02id\x94\x8c\x08order-17\x94\x8c\x02to\x94}\x94\x8c\x04user\x94\x8c\x03u42\x94s\x8c\x05event\x94\x8c\norder.paid\x94\x8c\x04data\x94}\x94(\x8c\x05order\x94"
        b"K\x11\x8c\x04name\x94\x8c\x04Zo\xc3\xab\x94uu."
    ),
)


# Celery 5.7.0: apply_async in its protocols 2 and 1, and in 2 with headers.

CELERY_TASK = Sent(
    (
        "fe00106170706c69636174696f6e2f6a736f6e057574662d380000016b046c616e6753000000027079047461736b53000000"
        "0b73686f702e6e6f74696679026964530000002434663163396436652d306237612d346335352d396430652d326636663762"
        "38663261313106736861646f775603657461560765787069726573560567726f7570560b67726f75705f696e646578560772"
        "65747269657349000000000974696d656c696d69744100000002565607726f6f745f6964530000002434663163396436652d"
        "306237612d346335352d396430652d32663666376238663261313109706172656e745f696456086172677372657072530000"
        "000d2827753432272c2027686927290a6b77617267737265707253000000107b27757267656e74273a20547275657d066f72"
        "6967696e530000000b67656e313633363840766d0d69676e6f72655f726573756c747400157265706c616365645f7461736b"
        "5f6e657374696e6749000000000f7374616d7065645f6865616465727356067374616d707346000000000200243466316339"
        "6436652d306237612d346335352d396430652d3266366637623866326131312431346139306633632d623533612d33633636"
        "2d623863662d313638323933633139306463"
    ),
    (
        b'[["u42", "hi"], {"urgent": true}, {"callbacks": null, "errbacks": null, "chain": null, "ch'
        b'ord": null}]'
    ),
)

CELERY_TASK_1 = Sent(
    (
        "fe00106170706c69636174696f6e2f6a736f6e057574662d380000000002002436663163396436652d306237612d34633535"
        "2d396430652d3266366637623866326131312432353935376339342d386334612d336535382d623935312d36343763623761"
        "3934303363"
    ),
    (
        b'{"task": "shop.notify", "id": "6f1c9d6e-0b7a-4c55-9d0e-2f6f7b8f2a11", "args": ["u42", "hi"'
        b'], "kwargs": {}, "group": null, "group_index": null, "retries": 0, "eta": null, "expires":'
        b' null, "utc": true, "callbacks": null, "errbacks": null, "timelimit": [null, null], "tasks'
        b'et": null, "chord": null}'
    ),
)

CELERY_TASK_WITH_HEADER = Sent(
    (
        "fe00106170706c69636174696f6e2f6a736f6e057574662d3800000171046c616e6753000000027079047461736b53000000"
        "0b73686f702e6e6f74696679026964530000002435663163396436652d306237612d346335352d396430652d326636663762"
        "38663261313106736861646f775603657461560765787069726573560567726f7570560b67726f75705f696e646578560772"
        "65747269657349000000000974696d656c696d69744100000002565607726f6f745f6964530000002435663163396436652d"
        "306237612d346335352d396430652d32663666376238663261313109706172656e745f696456086172677372657072530000"
        "000d2827753432272c2027686927290a6b77617267737265707253000000027b7d066f726967696e530000000b67656e3136"
        "33363840766d0d69676e6f72655f726573756c747400157265706c616365645f7461736b5f6e657374696e6749000000000f"
        "7374616d7065645f6865616465727356067374616d707346000000000b782d707573682d7573657253000000037534320200"
        "2435663163396436652d306237612d346335352d396430652d3266366637623866326131312431346139306633632d623533"
        "612d336336362d623863662d313638323933633139306463"
    ),
    (b'[["u42", "hi"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'),
)


# php-amqplib 3.5.3 on PHP 8.2: as docs/publishing.md has it, with an AMQPTable, and without properties.

PHP_REQUEST = Sent(
    ("9000106170706c69636174696f6e2f6a736f6e02"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

PHP_DATA = Sent(
    (
        "b080106170706c69636174696f6e2f6a736f6e000000340b782d707573682d7573657253000000037534320a782d70757368"
        "2d74746c490000003c0d782d707573682d72657461696e740002086f726465722d3137"
    ),
    (b'{"order":17}'),
)

PHP_BARE = Sent(
    ("0000"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)


# amqp091-go 1.14.0: as docs/publishing.md has it, a Table with an int64, one with an int that has no room, and no
# properties.

GO_REQUEST = Sent(
    ("9000106170706c69636174696f6e2f6a736f6e02"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

GO_DATA = Sent(
    (
        "b080106170706c69636174696f6e2f6a736f6e0000005113782d707573682d7075626c69736865642d6d736c000001a3185c"
        "50000d782d707573682d72657461696e74000b782d707573682d7573657253000000037534320a782d707573682d74746c49"
        "0000003c02086f726465722d3137"
    ),
    (b'{"order":17}'),
)

GO_INT = Sent(
    (
        "b000106170706c69636174696f6e2f6a736f6e0000002d0b782d707573682d75736572530000000375343213782d70757368"
        "2d7075626c69736865642d6d7349185c500002"
    ),
    (b'{"order":17}'),
)

GO_BARE = Sent(
    ("0000"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)


# Bunny 3.3.0.pre for Ruby over amq-protocol 2.9.0.pre: as docs/publishing.md has it, with headers, and no options.

BUNNY_REQUEST = Sent(
    ("9800106170706c69636174696f6e2f6a736f6e0200"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

BUNNY_DATA = Sent(
    (
        "b880106170706c69636174696f6e2f6a736f6e000000550b782d707573682d7573657253000000037534320a782d70757368"
        "2d74746c6c000000000000003c13782d707573682d7075626c69736865642d6d736c000001a3185c50000d782d707573682d"
        "72657461696e74000200086f726465722d3137"
    ),
    (b'{"order":17}'),
)

BUNNY_BARE = Sent(
    ("9800186170706c69636174696f6e2f6f637465742d73747265616d0200"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)


# pika 1.4.4 and aio-pika 10.2.1 over pamqp 4.0.1: with delivery_mode 2, the same with headers, and a body alone.

PIKA_REQUEST = Sent(
    ("9000106170706c69636174696f6e2f6a736f6e02"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

PIKA_DATA = Sent(
    (
        "b080106170706c69636174696f6e2f6a736f6e000000510b782d707573682d7573657253000000037534320a782d70757368"
        "2d74746c490000003c13782d707573682d7075626c69736865642d6d736c000001a3185c50000d782d707573682d72657461"
        "696e740002086f726465722d3137"
    ),
    (b'{"order":17}'),
)

PIKA_BARE = Sent(
    ("0000"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

AIO_PIKA_REQUEST = Sent(
    (
        "b880106170706c69636174696f6e2f6a736f6e00000000020020323433366531356536646566343235356236383937653235"
        "6636373764383565"
    ),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)

AIO_PIKA_DATA = Sent(
    (
        "b880106170706c69636174696f6e2f6a736f6e0000004e13782d707573682d7075626c69736865642d6d736c000001a3185c"
        "50000d782d707573682d72657461696e74000a782d707573682d74746c623c0b782d707573682d7573657253000000037534"
        "320200086f726465722d3137"
    ),
    (b'{"order":17}'),
)

AIO_PIKA_BARE = Sent(
    ("3880000000000100206531643965303766373463643461373761626666386561366131653931306531"),
    (b'{"id":"order-17","to":{"user":"u42"},"event":"order.paid","data":{"order":17}}'),
)


# The CloudEvents SDK for Python, cloudevents 2.2.0, module bindings.rabbitmq: to_structured_event, to_binary_event, and
# that with a header; published with kombu.

CLOUD_EVENT = Sent(
    ("f8001c6170706c69636174696f6e2f636c6f75646576656e74732b6a736f6e057574662d38000000000200"),
    (
        b'{"type": "order.paid", "source": "/shop/orders", "id": "A-1", "specversion": "1.0", "time"'
        b': "2026-11-29T12:00:00Z", "pushuser": "u42", "datacontenttype": "application/json", "data"'
        b': {"order": 17, "name": "Zo\\u00eb"}}'
    ),
)

CLOUD_EVENT_BINARY = Sent(
    (
        "f800106170706c69636174696f6e2f6a736f6e057574662d380000008c0763652d74797065530000000a6f726465722e7061"
        "69640963652d736f75726365530000000c2f73686f702f6f72646572730563652d69645300000003412d310e63652d737065"
        "6376657273696f6e5300000003312e300763652d74696d655300000014323032362d31312d32395431323a30303a30305a0b"
        "63652d707573687573657253000000037534320200"
    ),
    (b'{"order": 17, "name": "Zo\\u00eb"}'),
)

CLOUD_EVENT_BINARY_WITH_HEADER = Sent(
    (
        "f800106170706c69636174696f6e2f6a736f6e057574662d38000000a00763652d74797065530000000a6f726465722e7061"
        "69640963652d736f75726365530000000c2f73686f702f6f72646572730563652d69645300000003412d310e63652d737065"
        "6376657273696f6e5300000003312e300763652d74696d655300000014323032362d31312d32395431323a30303a30305a0b"
        "63652d707573687573657253000000037534320b782d707573682d7573657253000000037534320200"
    ),
    (b'{"order": 17, "name": "Zo\\u00eb"}'),
)


# --- not recorded: put together from sources and a published example --------------------------------------

# MassTransit 8: properties and headers of RabbitMqSendTransportContext.cs and RawMessageSerializer.cs, JSON as
# SystemTextJsonMessageSerializer.cs writes it (indented, camel case, with nulls); the envelope as in the example of
# the NServiceBus documentation, "Consuming MassTransit messages with NServiceBus".
MASSTRANSIT_ID = "5fdc0000-426e-001c-fcf9-08d9a30339e8"
ENVELOPE = b"""{
  "messageId": "5fdc0000-426e-001c-fcf9-08d9a30339e8",
  "requestId": null,
  "correlationId": null,
  "conversationId": "5fdc0000-426e-001c-fda0-08d9a30339e8",
  "initiatorId": null,
  "sourceAddress": "rabbitmq://broker/shop_bus?temporary=true",
  "destinationAddress": "rabbitmq://broker/push?type=topic",
  "responseAddress": null,
  "faultAddress": null,
  "messageType": [
    "urn:message:Shop:OrderPaid"
  ],
  "message": {
    "order": 17
  },
  "expirationTime": null,
  "sentTime": "2026-11-29T12:00:00.1052781Z",
  "headers": {},
  "host": {
    "machineName": "shop",
    "processName": "Shop",
    "processId": 17,
    "assembly": "Shop",
    "assemblyVersion": "1.0.0.0",
    "frameworkVersion": "8.0.11",
    "massTransitVersion": "8.3.0.0",
    "operatingSystemVersion": "Unix 6.1.0.0"
  }
}"""


def of_masstransit(body: bytes, content_type: str, **headers: object) -> Sent:
    given = encoding.table(headers)[0] if headers else bytes(4)
    made = encoding.properties(content_type=content_type, headers=given, message_id=MASSTRANSIT_ID)
    return Sent(made.hex(), body)


RAW = {"MT-Message-Id": MASSTRANSIT_ID, "MT-MessageType": "urn:message:Shop:OrderPaid"}
MASSTRANSIT_ENVELOPE = of_masstransit(ENVELOPE, "application/vnd.masstransit+json")
MASSTRANSIT_ENVELOPE_WITH_HEADER = of_masstransit(
    ENVELOPE, "application/vnd.masstransit+json", **{"x-push-user": "u42"}
)
MASSTRANSIT_REQUEST = of_masstransit(
    b'{\n  "id": "order-17",\n  "to": {\n    "user": "u42"\n  },\n  "data": {\n    "order": 17\n  }\n}',
    "application/json",
    **RAW,
)
MASSTRANSIT_DATA = of_masstransit(
    b'{\n  "order": 17\n}', "application/json", **RAW, **{"x-push-user": "u42", "x-push-retain": False}
)
MASSTRANSIT_TO_ALL = of_masstransit(b"{}", "application/json", **RAW, **{"x-push-all": "True"})
MASSTRANSIT_NULLS = of_masstransit(
    b'{\n  "id": null,\n  "to": {\n    "user": "u42"\n  },\n  "data": 1\n}', "application/json", **RAW
)


# --- what the bridge makes of them ------------------------------------------------------------------------


def read(sent: Sent) -> list[PushRequest | Rejected]:
    one = sent.arrival
    requests = list(decode(one, Limits()).requests)
    again = list(finish(decode_in_steps(one, Limits())).requests)
    assert [type(request) for request in requests] == [type(request) for request in again]
    return requests


def taken(sent: Sent) -> PushRequest:
    (request,) = read(sent)
    assert isinstance(request, PushRequest), request
    return request


REQUESTS = {
    "NestJS": NEST_REQUEST,
    "amqplib": AMQPLIB_REQUEST,
    "Java": JAVA_REQUEST,
    "Spring": SPRING_REQUEST,
    "kombu": KOMBU_REQUEST,
    "php-amqplib": PHP_REQUEST,
    "MassTransit": MASSTRANSIT_REQUEST,
    "amqp091-go": GO_REQUEST,
    "Bunny": BUNNY_REQUEST,
    "pika": PIKA_REQUEST,
    "aio-pika": AIO_PIKA_REQUEST,
}
"""The request of docs/publishing.md, section "Your client"."""


@pytest.mark.parametrize("client", REQUESTS)
def test_a_request_made_as_the_documents_say_is_taken_and_is_persistent(client: str) -> None:
    sent = REQUESTS[client]
    request = taken(sent)
    assert (request.id, request.target, request.encoding) == ("order-17", ToUser("u42"), Encoding.JSON)
    assert json.loads(request.data)["order"] == 17
    assert sent.delivery_mode == 2
    assert sent.properties.priority in (None, 0)


@pytest.mark.parametrize(
    "sent",
    [
        *(AMQPLIB_DATA, JAVA_DATA, KOMBU_DATA, PHP_DATA, MASSTRANSIT_DATA, SPRING_DATA),
        *(GO_DATA, BUNNY_DATA, PIKA_DATA, AIO_PIKA_DATA),
    ],
    ids=[
        "amqplib",
        "Java",
        "kombu",
        "php-amqplib",
        "MassTransit",
        "Spring",
        "amqp091-go",
        "Bunny",
        "pika",
        "aio-pika",
    ],
)
def test_data_with_headers_of_ours_is_taken_and_the_browser_gets_the_data(sent: Sent) -> None:
    request = taken(sent)
    assert (request.target, request.encoding) == (ToUser("u42"), Encoding.JSON)
    assert json.loads(request.data) == {"order": 17}
    assert sent.delivery_mode == 2
    assert not request.retain, "a false header says nothing"
    assert request.generated_id is (sent is SPRING_DATA), "Spring sets no message_id by itself"


def test_what_a_client_writes_by_itself_in_headers_is_read() -> None:
    java = decode(JAVA_DATA.arrival, Limits())
    assert java.published_at == 1_800_000_000.0, "a Date is an AMQP timestamp"
    for sent in (JAVA_DATA, PHP_DATA, AMQPLIB_DATA, GO_DATA, BUNNY_DATA, PIKA_DATA, AIO_PIKA_DATA):
        assert taken(sent).ttl == 60.0
    (everyone,) = read(MASSTRANSIT_TO_ALL)
    assert isinstance(everyone, PushRequest), "MassTransit writes true as the string True"


@pytest.mark.parametrize(
    ("sent", "mode"),
    [
        *((AMQPLIB_BARE, 0), (JAVA_BARE, 0), (PHP_BARE, 0), (GO_BARE, 0), (PIKA_BARE, 0)),
        *((AIO_PIKA_BARE, 1), (BUNNY_BARE, 2)),
    ],
    ids=["amqplib", "Java", "php-amqplib", "amqp091-go", "pika", "aio-pika", "Bunny"],
)
def test_without_properties_a_request_is_taken_but_only_one_client_makes_it_persistent(
    sent: Sent, mode: int
) -> None:
    assert taken(sent).target == ToUser("u42")
    assert taken(sent).id == "order-17", (
        "the id in the body, also beside a message_id that the client makes up"
    )
    assert sent.delivery_mode == mode


@pytest.mark.parametrize("kind", ["b", "B", "s", "U", "u", "I", "i", "l", "L"])
def test_a_whole_number_of_any_type_is_the_number(kind: str) -> None:
    size = {"b": 1, "B": 1, "s": 2, "U": 2, "u": 2, "I": 4, "i": 4, "l": 8, "L": 8}[kind]
    headers = b"\x0bx-push-userS\0\0\0\x03u42\x0ax-push-ttl" + kind.encode() + (60).to_bytes(size)
    content = b"\x20\0" + len(headers).to_bytes(4) + headers
    assert taken(Sent(content.hex(), b"1")).ttl == 60.0


def test_an_int_of_go_is_cut_at_32_bits_by_the_client() -> None:
    """So docs/publishing.md says to give an int64."""
    ms = 1_800_000_000_000
    assert GO_INT.properties.headers["x-push-published-ms"] == ms & 0xFFFFFFFF
    for sent in (GO_DATA, BUNNY_DATA, PIKA_DATA, AIO_PIKA_DATA):
        assert decode(sent.arrival, Limits()).published_at == ms / 1000


def test_text_and_bytes_stay_what_they_are() -> None:
    assert (taken(KOMBU_TEXT).encoding, taken(KOMBU_TEXT).data) == (Encoding.TEXT, b"hello")
    assert (taken(KOMBU_BYTES).encoding, taken(KOMBU_BYTES).data) == (Encoding.BYTES, b"\x00\xff")
    # JSON by PERSISTENT_TEXT_PLAIN with headers of ours is a text for the browser.
    assert (taken(JAVA_TEXT).encoding, taken(JAVA_TEXT).data) == (Encoding.TEXT, b'{"order":17}')


@pytest.mark.parametrize(
    ("sent", "reason", "detail"),
    [
        (CELERY_TASK, Reason.INVALID, "this looks like a Celery task: "),
        (CELERY_TASK_1, Reason.INVALID, "this looks like a Celery task: "),
        (NEST_EVENT, Reason.INVALID, "this looks like a message of NestJS: "),
        (NEST_CALL, Reason.INVALID, "this looks like a message of NestJS: "),
        (MASSTRANSIT_ENVELOPE, Reason.INVALID, "this looks like an envelope of MassTransit: "),
        (SPRING_OBJECT, Reason.INVALID, "this looks like an object of Spring: "),
        (SPRING_SERIALIZED, Reason.NOT_JSON, "this looks like a serialized Java object: "),
        (JAVA_OBJECT, Reason.NOT_JSON, "this looks like a serialized Java object: "),
        (KOMBU_PICKLED, Reason.NOT_JSON, "this looks like a pickled Python object: "),
        (KOMBU_ZIPPED, Reason.UNSUPPORTED, "header compression: the body is compressed"),
        (CLOUD_EVENT_BINARY, Reason.INVALID, "this looks like a CloudEvent in binary mode: "),
        (
            Sent(KOMBU_REQUEST.header, CLOUD_EVENT.body),
            Reason.INVALID,
            "this looks like a CloudEvent: give it the content type",
        ),
    ],
)
def test_a_message_of_its_own_is_rejected_and_the_detail_says_what_it_looks_like(
    sent: Sent, reason: Reason, detail: str
) -> None:
    requests = read(sent)
    # A Celery task is an array of three, so it is rejected as a batch of three.
    assert len(requests) == (3 if sent is CELERY_TASK else 1)
    for request in requests:
        assert isinstance(request, Rejected)
        assert request.reason is reason
        assert request.detail.startswith(detail)
        assert len(request.detail) < 700


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (CELERY_TASK_WITH_HEADER, None),
        (NEST_EVENT_WITH_HEADER, {"pattern", "data"}),
        (MASSTRANSIT_ENVELOPE_WITH_HEADER, set(json.loads(ENVELOPE))),
        (CLOUD_EVENT_BINARY_WITH_HEADER, {"order", "name"}),
    ],
)
def test_with_a_target_in_its_headers_the_whole_body_is_what_the_browser_gets(
    sent: Sent, keys: set[str] | None
) -> None:
    request = taken(sent)
    assert (request.target, request.encoding) == (ToUser("u42"), Encoding.JSON)
    assert request.data == sent.body
    got = json.loads(request.data)
    assert isinstance(got, list) if keys is None else set(got) == keys


def test_the_event_of_an_sdk_is_a_push_of_its_data() -> None:
    request = taken(CLOUD_EVENT)
    assert (request.target, request.event, request.id) == (ToUser("u42"), "order.paid", "/shop/orders#A-1")
    assert json.loads(request.data) == {"order": 17, "name": "Zoë"}
    assert CLOUD_EVENT.delivery_mode == 2


def test_a_null_field_is_rejected_as_what_it_is() -> None:
    (request,) = read(MASSTRANSIT_NULLS)
    assert isinstance(request, Rejected)
    assert request.detail.startswith("id: expected a string")


def test_a_wrong_request_is_not_called_a_message_of_somebody_else() -> None:
    wrong = b'{"to":{"user":7},"data":{"order":17}}'
    for sent in (SPRING_OBJECT, CELERY_TASK, MASSTRANSIT_ENVELOPE, CLOUD_EVENT_BINARY, KOMBU_REQUEST):
        (request,) = read(Sent(sent.header, wrong))
        assert isinstance(request, Rejected)
        assert request.detail.startswith("to.user: "), request.detail
    both = b'[{"to":{"user":"u42"},"data":1},{"to":{"user":"u42"}}]'
    right, missing = read(Sent(SPRING_OBJECT.header, both))
    assert isinstance(right, PushRequest)
    assert isinstance(missing, Rejected)
    assert missing.detail == "[1].data: this field is required"
