//go:build tools

// Package main also names etcdutl, so that go.sum covers what it is made of.
package main

import _ "go.etcd.io/etcd/etcdutl/v3"
