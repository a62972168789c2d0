"""The nouns, frozen, and the two transition tables.

Law: nothing here acts. A value says what is; `relay.rules` says what follows; the floors above do it.
Times are aware UTC `datetime`, spans are `timedelta`; other units exist only in the YAML and in the store.
"""

from relay.model.credentials import (
    Auth as Auth,
)
from relay.model.credentials import (
    ClientTls as ClientTls,
)
from relay.model.credentials import (
    OAuth2Client as OAuth2Client,
)
from relay.model.credentials import (
    Proxy as Proxy,
)
from relay.model.credentials import (
    QueryKey as QueryKey,
)
from relay.model.credentials import (
    StaticAuth as StaticAuth,
)
from relay.model.delivering import (
    DELIVERY_MOVES as DELIVERY_MOVES,
)
from relay.model.delivering import (
    DONE as DONE,
)
from relay.model.delivering import (
    ENDED as ENDED,
)
from relay.model.delivering import (
    HEALTH_FIELDS as HEALTH_FIELDS,
)
from relay.model.delivering import (
    OUTCOMES as OUTCOMES,
)
from relay.model.delivering import (
    TARGET_MOVES as TARGET_MOVES,
)
from relay.model.delivering import (
    Claim as Claim,
)
from relay.model.delivering import (
    Course as Course,
)
from relay.model.delivering import (
    Decision as Decision,
)
from relay.model.delivering import (
    DeliveryState as DeliveryState,
)
from relay.model.delivering import (
    DisabledBy as DisabledBy,
)
from relay.model.delivering import (
    Done as Done,
)
from relay.model.delivering import (
    GiveUp as GiveUp,
)
from relay.model.delivering import (
    Outcome as Outcome,
)
from relay.model.delivering import (
    OutcomeKind as OutcomeKind,
)
from relay.model.delivering import (
    RetryAt as RetryAt,
)
from relay.model.delivering import (
    Skip as Skip,
)
from relay.model.delivering import (
    StatusSet as StatusSet,
)
from relay.model.delivering import (
    Target as Target,
)
from relay.model.delivering import (
    TargetHealth as TargetHealth,
)
from relay.model.delivering import (
    TargetState as TargetState,
)
from relay.model.delivering import (
    Turn as Turn,
)
from relay.model.delivering import (
    Way as Way,
)
from relay.model.delivering import (
    Word as Word,
)
from relay.model.enriching import (
    Enricher as Enricher,
)
from relay.model.proving import (
    ApiKeyCheck as ApiKeyCheck,
)
from relay.model.proving import (
    BasicCheck as BasicCheck,
)
from relay.model.proving import (
    BearerCheck as BearerCheck,
)
from relay.model.proving import (
    Check as Check,
)
from relay.model.proving import (
    HmacCheck as HmacCheck,
)
from relay.model.proving import (
    NoCheck as NoCheck,
)
from relay.model.proving import (
    ProofList as ProofList,
)
from relay.model.proving import (
    Secret as Secret,
)
from relay.model.proving import (
    StandardWebhooksCheck as StandardWebhooksCheck,
)
from relay.model.receiving import (
    FORM_TYPE as FORM_TYPE,
)
from relay.model.receiving import (
    NO_TYPE as NO_TYPE,
)
from relay.model.receiving import (
    RELAY as RELAY,
)
from relay.model.receiving import (
    Asked as Asked,
)
from relay.model.receiving import (
    Challenge as Challenge,
)
from relay.model.receiving import (
    Content as Content,
)
from relay.model.receiving import (
    Event as Event,
)
from relay.model.receiving import (
    Headers as Headers,
)
from relay.model.receiving import (
    IPNetwork as IPNetwork,
)
from relay.model.receiving import (
    Lookup as Lookup,
)
from relay.model.receiving import (
    Namer as Namer,
)
from relay.model.receiving import (
    Provider as Provider,
)
from relay.model.receiving import (
    Rate as Rate,
)
from relay.model.receiving import (
    ReceivedRequest as ReceivedRequest,
)
from relay.model.receiving import (
    Route as Route,
)
from relay.model.receiving import (
    Sample as Sample,
)
from relay.model.receiving import (
    Source as Source,
)
from relay.model.receiving import (
    Throttle as Throttle,
)
from relay.model.receiving import (
    Unasked as Unasked,
)
from relay.model.receiving import (
    Vector as Vector,
)
from relay.model.receiving import (
    VerifiedRequest as VerifiedRequest,
)
from relay.model.shaping import (
    Body as Body,
)
from relay.model.shaping import (
    BodyFormat as BodyFormat,
)
from relay.model.shaping import (
    Fetched as Fetched,
)
from relay.model.shaping import (
    PickBody as PickBody,
)
from relay.model.shaping import (
    PresetBody as PresetBody,
)
from relay.model.shaping import (
    PresetName as PresetName,
)
from relay.model.shaping import (
    RawBody as RawBody,
)
from relay.model.shaping import (
    Shaped as Shaped,
)
from relay.model.shaping import (
    TemplateBody as TemplateBody,
)
from relay.model.shaping import (
    Unshaped as Unshaped,
)
