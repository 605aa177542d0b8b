# From an empty account to a machine that runs the pipeline on schedule. README.md says how to start.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account = data.aws_caller_identity.current.account_id
  aws     = data.aws_partition.current.partition
}

module "storage" {
  source = "./modules/storage"

  name      = var.name
  region    = var.region
  account   = local.account
  aws       = local.aws
  retention = var.retention
  protect   = var.protect
}

module "network" {
  source = "./modules/network"

  name          = var.name
  region        = var.region
  cidr          = var.cidr
  nat           = var.nat
  inbound_cidrs = var.inbound_cidrs
  api_port      = var.api_port
  key_arn       = module.storage.key_arn
  retention     = var.retention.logs
}

module "registry" {
  source = "./modules/registry"

  repositories = toset(["${var.name}-api", "${var.name}-pipeline"])
  key_arn      = module.storage.key_arn
  protect      = var.protect
}

module "identity" {
  source = "./modules/identity"

  name            = var.name
  region          = var.region
  account         = local.account
  aws             = local.aws
  bucket_arn      = module.storage.bucket_arn
  key_arn         = module.storage.key_arn
  repository_arns = module.registry.arns
  log_group_arn   = module.machine.log_group_arn
  release_bucket  = startswith(var.release.url, "s3://") ? split("/", var.release.url)[2] : ""
  release_key     = startswith(var.release.url, "s3://") ? join("/", slice(split("/", var.release.url), 3, length(split("/", var.release.url)))) : ""
}

module "machine" {
  source = "./modules/machine"

  name             = var.name
  region           = var.region
  aws              = local.aws
  account          = local.account
  ami              = var.ami
  instance_type    = var.instance_type
  root_gb          = var.root_gb
  data_gb          = var.data_gb
  subnet_id        = module.network.subnet_id
  zone             = module.network.zone
  security_group   = module.network.security_group
  instance_profile = module.identity.instance_profile
  key_arn          = module.storage.key_arn
  bucket           = module.storage.bucket
  registry         = module.registry.host
  repository       = "${var.name}-api"
  release          = var.release
  minikube         = var.minikube
  agents           = var.agents
  schedule         = var.schedule
  mlflow           = var.mlflow
  api_host         = length(var.inbound_cidrs) > 0 ? "0.0.0.0" : "127.0.0.1"
  api_port         = var.api_port
  node_port        = var.node_port
  settings         = var.settings
  alarm_email      = var.alarm_email
  silent_days      = var.silent_days
  retention        = var.retention.logs
  protect          = var.protect
}
