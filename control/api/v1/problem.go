package v1

import (
	"context"
	"errors"
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

// codes are those of problems that huma finds by itself.
var codes = map[int]string{
	http.StatusBadRequest: "invalid", http.StatusUnprocessableEntity: "invalid", http.StatusUnsupportedMediaType: "invalid", http.StatusNotAcceptable: "invalid",
	http.StatusUnauthorized: "unauthorized", http.StatusForbidden: "forbidden", http.StatusNotFound: "not_found", http.StatusMethodNotAllowed: "not_found",
	http.StatusRequestEntityTooLarge: "too_large", http.StatusPreconditionFailed: "stale", http.StatusRequestTimeout: "unavailable",
}

// newProblem is what huma makes errors with. What does not fit the document is a
// bad request, whatever its media type.
func newProblem(status int, msg string, errs ...error) huma.StatusError {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	code := codes[status]
	if code == "" {
		code = "internal"
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
		p = problem(http.StatusBadRequest, "invalid", err.Error())
		p.Field = field.Path
		return p
	case errors.As(err, &exhausted):
		return problem(http.StatusConflict, "exhausted", err.Error())
	case errors.As(err, &full):
		return problem(http.StatusConflict, "exhausted", err.Error())
	case errors.As(err, &taken), errors.As(err, &host):
		return problem(http.StatusConflict, "taken", err.Error())
	case errors.As(err, &exists):
		return problem(http.StatusConflict, "exists", err.Error())
	case errors.As(err, &missing), errors.As(err, &nobody), errors.As(err, &serving):
		return problem(http.StatusNotFound, "not_found", err.Error())
	case errors.As(err, &stale):
		return problem(http.StatusPreconditionFailed, "stale", err.Error())
	case errors.As(err, &conflict):
		return problem(http.StatusConflict, "conflict", err.Error())
	case errors.As(err, &late):
		p = problem(http.StatusGatewayTimeout, "not_applied", "the change was made; "+err.Error())
		p.Revision = late.Rev
		return p
	case errors.Is(err, context.Canceled):
		return problem(http.StatusServiceUnavailable, "unavailable", "the client went away")
	}
	return problem(http.StatusServiceUnavailable, "unavailable", err.Error())
}
