// Package wire has the words of the control API: what is sent and answered, as
// JSON. The handlers (control/api/v1), the Go client (control/api/client) and the
// packages that know these things have the same types, so that there is one place
// where a field is named and described, and the OpenAPI document is made of it.
//
// It decides nothing, does nothing, and imports nothing but the words of mappings
// and pools: a program that uses the client links no etcd.
package wire

// Page is a part of a list.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty" doc:"What to give as after for more; absent: there is no more."`
}

// Done is the answer to a change that leaves nothing to show.
type Done struct {
	Revision int64 `json:"revision" doc:"The etcd revision of the change; 0: there was nothing to change."`
}
