// Package certstest runs, inside the test process and on loopback, the servers
// that certificates are obtained from: an ACME certificate authority (Pebble)
// and an authoritative DNS server that takes signed updates, and fakes of the
// DNS APIs of Aliyun and Cloudflare that check signatures and tokens. It has as
// well a store in memory that any number of nodes of one test can share.
//
// Everything stops with the test that started it. Only tests may import it.
package certstest
