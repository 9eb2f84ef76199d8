package wire

import (
	"encoding/json"
	"time"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// ServiceSpec is what a service of an environment is to be.
type ServiceSpec struct {
	Port     int               `json:"port,omitempty" minimum:"0" maximum:"65535" doc:"The very public port; 0: any of the pool."`
	Span     int               `json:"span,omitempty" minimum:"0" maximum:"32" doc:"Ports in a row; 0: one."`
	Backend  string            `json:"backend,omitempty" maxLength:"320" doc:"A host, host:port or :port; what is missing the environment and the pool say."`
	Username string            `json:"username,omitempty" maxLength:"64" doc:"Takes the place of the pool's."`
	Inner    string            `json:"inner_ports,omitempty" maxLength:"200" example:"3000,8000-8999" doc:"The ports inside that clients may name, where the pool's route has them name one."`
	Mapping  map[string]any    `json:"mapping,omitempty" doc:"Further fields of its mappings, as in KEYS.md."`
	Secrets  map[string]string `json:"secrets,omitempty" doc:"What its users need to log in; kept sealed, and given only to operators who ask for the access."`
}

// NewEnvironment is the body that creates an environment.
type NewEnvironment struct {
	ID        string                 `json:"id" minLength:"1" maxLength:"63" pattern:"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" doc:"Becomes part of host names."`
	Backend   string                 `json:"backend,omitempty" maxLength:"253" doc:"The host of its services."`
	ExpiresAt *time.Time             `json:"expires_at,omitempty" doc:"When all of it ends."`
	Services  map[string]ServiceSpec `json:"services" minProperties:"1" maxProperties:"24" doc:"By the names of their pools."`
}

// EnvironmentPatch is the body that changes one: absent fields leave things as
// they are (RFC 7396).
type EnvironmentPatch struct {
	Backend   *string    `json:"backend,omitempty" maxLength:"253"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"When all of it ends; 0001-01-01T00:00:00Z: it does not."`
	// Services are added, changed or, where nil, dropped.
	Services map[string]*ServiceSpec `json:"services,omitempty" maxProperties:"24" doc:"Added, changed or, where null, dropped."`
}

// Environment is an environment as people and programs are shown it: without
// secrets.
type Environment struct {
	ID        string              `json:"id"`
	Revision  int64               `json:"revision" doc:"The etcd revision of its last change."`
	Backend   string              `json:"backend,omitempty"`
	CreatedAt time.Time           `json:"created_at"`
	ExpiresAt time.Time           `json:"expires_at,omitzero" doc:"When all of it ends; absent: it does not by itself."`
	Services  map[string]*Service `json:"services" doc:"By the names of their pools."`
	// Answers are there in the answer to a change alone. None is all well.
	Answers []Answer `json:"answers,omitempty" doc:"What live nodes say of its mappings and routes where there is more to say than that they are in force, such as that another program has the port: in the answer to a change with wait=applied."`
}

// Service is one service of an environment.
type Service struct {
	Port       int             `json:"port,omitempty" doc:"The first of its public ports; absent: it is reached by name."`
	Span       int             `json:"span,omitempty" doc:"How many there are in a row; absent: one."`
	Protocol   string          `json:"protocol,omitempty" doc:"tcp, udp or tcp+udp; absent: tcp."`
	Backend    string          `json:"backend,omitempty" doc:"The host:port behind the first port; absent: the ports are held, and mappings are somebody else's affair."`
	Route      string          `json:"route,omitempty" doc:"The name of the route that was made for it."`
	Username   string          `json:"username,omitempty"`
	InnerPorts router.Ports    `json:"inner_ports,omitempty" doc:"The ports inside that clients may name."`
	Mapping    json.RawMessage `json:"mapping,omitempty" doc:"Further fields of its mappings."`
}

// Access is what people are told of how they reach a service.
type Access struct {
	Host     string            `json:"host,omitempty"`
	Port     int               `json:"port,omitempty"`
	Username string            `json:"username,omitempty"`
	Command  string            `json:"command,omitempty"`
	URL      string            `json:"url,omitempty"`
	Secrets  map[string]string `json:"secrets,omitempty" doc:"Those that were passed in when the environment was made."`
}

// AccessAnswer is how an environment is reached, in the shape that the platform
// knows.
type AccessAnswer struct {
	Code    int        `json:"code" doc:"0."`
	Message string     `json:"message" doc:"success."`
	Data    AccessData `json:"data"`
}

// AccessData is what an AccessAnswer says.
type AccessData struct {
	EnvironmentID string            `json:"environment_id"`
	AccessInfo    map[string]Access `json:"access_info" doc:"By service."`
}

// PortRequest asks for ports of a pool, without mappings.
type PortRequest struct {
	Env     string `json:"env" minLength:"1" maxLength:"63" pattern:"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" doc:"Who gets them."`
	Service string `json:"service" minLength:"1" maxLength:"128" doc:"The name of the pool."`
	Port    int    `json:"port,omitempty" minimum:"0" maximum:"65535" doc:"That very port, which may be a reserved one of the pool; 0: any."`
	Span    int    `json:"span,omitempty" minimum:"0" maximum:"32" doc:"Ports in a row; 0: one."`
}

// Port is a port that is held, reserved or was released.
type Port struct {
	Proto    string         `json:"proto"`
	Port     int            `json:"port"`
	State    portpool.State `json:"state" enum:"available,allocated,reserved,quarantined,mapped"`
	Env      string         `json:"env,omitempty"`
	Service  string         `json:"service,omitempty"`
	Since    time.Time      `json:"since,omitzero"`
	Released time.Time      `json:"released,omitzero"`
	Until    time.Time      `json:"until,omitzero" doc:"When it may be had again."`
	Reserved string         `json:"reserved,omitempty" doc:"What for."`
}

// Reservation sets ports aside, so that no environment gets them.
type Reservation struct {
	Protocol string `json:"protocol,omitempty" enum:"tcp,udp,tcp+udp" default:"tcp"`
	Ports    string `json:"ports" minLength:"1" maxLength:"11" example:"20022-20029" doc:"A port, or a range."`
	For      string `json:"for" minLength:"1" maxLength:"200" doc:"What for; whoever wants one of them reads it."`
}

// PortFinding is something about ports that does not fit together.
type PortFinding struct {
	Kind    string `json:"kind" doc:"unmapped (held without a mapping), unheld (mapped in a pool without being held), orphaned (held by an environment that is gone), unowned (an environment's, which does not hold it), stranded (held outside of the pool), unreadable."`
	Key     string `json:"key"`
	Env     string `json:"env,omitempty"`
	Service string `json:"service,omitempty"`
	Text    string `json:"text"`
}

// PoolUsage counts the ports of a pool by their state.
type PoolUsage struct {
	Service string `json:"service"`
	portpool.Stats
}
