// Package v1 is the control API: what the commands of sluice do, for programs.
// It serves environments, ports, keys and what nodes make of them over HTTP, as
// described by the OpenAPI document that is generated from its handlers.
//
// It decides who may do what (tokens, roles, scopes), and puts the words of
// other packages' errors into problem details (RFC 9457). What is done is done by
// control/envs and control/keys. It never touches the data plane but through the
// Live interface of control/api.
package v1
