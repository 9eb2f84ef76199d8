package v1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// What is answered is described where the client has it too.
type (
	// Problem is what a request is answered with that came to nothing.
	Problem = wire.Problem
	// Fault is one of several things that are wrong with a request.
	Fault = wire.Fault
)

func problem(status int, code, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

// invalid is a problem with a field of a request; "": with none of them alone.
func invalid(field, detail string) *Problem {
	p := problem(http.StatusBadRequest, wire.Invalid, detail)
	p.Field = field
	return p
}

// codes are those of problems that huma finds by itself.
var codes = map[int]string{
	http.StatusBadRequest: wire.Invalid, http.StatusUnprocessableEntity: wire.Invalid, http.StatusUnsupportedMediaType: wire.Invalid, http.StatusNotAcceptable: wire.Invalid,
	http.StatusUnauthorized: wire.Unauthorized, http.StatusForbidden: wire.Forbidden, http.StatusNotFound: wire.NotFound, http.StatusMethodNotAllowed: wire.Method,
	http.StatusRequestEntityTooLarge: wire.TooLarge, http.StatusPreconditionFailed: wire.Stale, http.StatusRequestTimeout: wire.Unavailable,
}

// newProblem is what huma makes errors with. What does not fit the document is a
// bad request, whatever its media type.
func newProblem(status int, msg string, errs ...error) huma.StatusError {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	code := codes[status]
	if code == "" {
		code = wire.Internal
	}
	p := problem(status, code, msg)
	for _, err := range errs {
		if err == nil {
			continue
		}
		f := Fault{Detail: err.Error()}
		var d huma.ErrorDetailer
		if errors.As(err, &d) {
			detail := d.ErrorDetail()
			f = Fault{Field: fieldOf(detail.Location), Detail: detail.Message}
		}
		p.Errors = append(p.Errors, f)
	}
	if len(p.Errors) > 0 {
		p.Field, p.Detail = p.Errors[0].Field, strings.TrimPrefix(p.Errors[0].Field+": ", ": ")+p.Errors[0].Detail
	}
	if len(p.Errors) == 1 {
		p.Errors = nil
	}
	return p
}

// orProblem has what mux knows no pattern for answered with a problem, as all that
// comes to nothing.
func orProblem(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(&unknown{ResponseWriter: w, r: r}, r)
	})
}

// unknown writes a problem in the place of the mux's text.
type unknown struct {
	http.ResponseWriter
	r       *http.Request
	instead bool // what is written is left out
}

func (u *unknown) WriteHeader(status int) {
	var p *Problem
	switch h := u.Header(); status {
	case http.StatusNotFound:
		p = problem(status, wire.NotFound, fmt.Sprintf("there is nothing at %s; /api/v1/openapi.json says what there is", u.r.URL.Path))
	case http.StatusMethodNotAllowed:
		p = problem(status, wire.Method, fmt.Sprintf("%s is not for %s, which takes %s", u.r.Method, u.r.URL.Path, h.Get("Allow")))
	}
	if p == nil {
		u.ResponseWriter.WriteHeader(status)
		return
	}
	u.instead = true
	u.Header().Set("Content-Type", p.ContentType(""))
	u.ResponseWriter.WriteHeader(status)
	_ = json.NewEncoder(u.ResponseWriter).Encode(p) // the client may be gone
}

func (u *unknown) Write(b []byte) (int, error) {
	if u.instead {
		return len(b), nil
	}
	return u.ResponseWriter.Write(b)
}

// fieldOf names a field as the errors of values do, without the place in the
// request that it came in.
func fieldOf(location string) string {
	for _, place := range []string{"body", "path", "query", "header"} {
		if rest, ok := strings.CutPrefix(location, place); ok {
			return strings.TrimPrefix(rest, ".")
		}
	}
	return location
}

// problemOf returns the problem that err is.
func problemOf(err error) error {
	var (
		p         *Problem
		field     *router.FieldError
		exhausted *portpool.ExhaustedError
		taken     *portpool.TakenError
		host      *envs.HostError
		full      *envs.FullError
		exists    *envs.ExistsError
		missing   *envs.NotFoundError
		nobody    *keys.NoNodeError
		serving   *keys.ServingError
		stale     *envs.StaleError
		conflict  *etcd.ConflictError
		late      *keys.LateError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return p
	case errors.As(err, &field):
		return invalid(field.Path, err.Error())
	case errors.As(err, &exhausted):
		return problem(http.StatusConflict, wire.Exhausted, err.Error())
	case errors.As(err, &full):
		return problem(http.StatusConflict, wire.Exhausted, err.Error())
	case errors.As(err, &host):
		p = problem(http.StatusConflict, wire.Taken, err.Error())
		p.Field = "services." + host.Service
		return p
	case errors.As(err, &taken):
		return problem(http.StatusConflict, wire.Taken, err.Error())
	case errors.As(err, &exists):
		return problem(http.StatusConflict, wire.Exists, err.Error())
	case errors.As(err, &missing), errors.As(err, &nobody), errors.As(err, &serving):
		return problem(http.StatusNotFound, wire.NotFound, err.Error())
	case errors.As(err, &stale):
		return problem(http.StatusPreconditionFailed, wire.Stale, err.Error())
	case errors.As(err, &conflict):
		return problem(http.StatusConflict, wire.Conflict, err.Error())
	case errors.As(err, &late):
		p = problem(http.StatusGatewayTimeout, wire.NotApplied, err.Error())
		if late.At < late.Rev { // nobody has made a change of that revision
			return p
		}
		p.Detail = "the change was made; " + p.Detail
		p.Revision = late.Rev
		return p
	case errors.Is(err, context.Canceled):
		return problem(http.StatusServiceUnavailable, wire.Unavailable, "the client went away")
	}
	return problem(http.StatusServiceUnavailable, wire.Unavailable, err.Error())
}
