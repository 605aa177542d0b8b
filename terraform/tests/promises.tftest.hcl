# What README.md promises, held on a plan that is applied to a provider that only pretends.

mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-west-1a", "eu-west-1b"] }
  }
  mock_data "aws_ami" {
    defaults = { id = "ami-0123456789abcdef0" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-west-1:123456789012:key/0", key_id = "0" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::bucket" }
  }
  mock_resource "aws_ecr_repository" {
    defaults = { arn = "arn:aws:ecr:eu-west-1:123456789012:repository/health-predict-api", repository_url = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/health-predict-api" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/health-predict/machine" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/health-predict" }
  }
  mock_resource "aws_ebs_volume" {
    defaults = { id = "vol-0123456789abcdef0" }
  }
  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:eu-west-1:123456789012:health-predict-alarms" }
  }
}

variables {
  region  = "eu-west-1"
  release = { url = "s3://releases/health-predict-1.0.0.tar.gz", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
}

run "by_default" {
  # The machine may do little.
  assert {
    condition     = alltrue([for s in module.identity.statements : alltrue([for a in s.Action : !strcontains(a, "*")])])
    error_message = "an action of the machine's role has a wildcard"
  }
  assert {
    condition     = toset([for s in module.identity.statements : s.Sid if contains(s.Resource, "*")]) == toset(["LogInToRegistry", "BeManagedBySsm"])
    error_message = "Resource \"*\" stands elsewhere than where AWS knows no narrower one"
  }
  assert {
    condition     = alltrue([for s in module.identity.statements : s.Effect == "Allow" && alltrue([for a in s.Action : !startswith(a, "iam:") && !startswith(a, "sts:")])])
    error_message = "the machine could give itself more rights"
  }
  assert {
    condition     = alltrue([for s in module.identity.statements : alltrue([for r in s.Resource : r == "*" || strcontains(r, "health-predict") || strcontains(r, ":key/0") || startswith(r, "arn:aws:s3:::bucket") || r == "arn:aws:s3:::releases/health-predict-1.0.0.tar.gz"])])
    error_message = "the machine reaches resources of others"
  }
  assert {
    condition     = one([for s in module.identity.statements : s.Resource if s.Sid == "UseStorage"]) == ["arn:aws:s3:::bucket/storage/*"]
    error_message = "the machine writes outside the storage tree"
  }
  assert {
    condition     = alltrue([for s in module.network.flow_policy.Statement : !strcontains(join(" ", s.Action), "*") && s.Resource != "*"])
    error_message = "the flow log's role has a wildcard"
  }
  assert {
    condition     = alltrue([for s in module.storage.key_policy.Statement : !strcontains(join(" ", s.Action), "*")])
    error_message = "the key's policy allows kms:*"
  }

  # Nobody gets in.
  assert {
    condition     = module.machine.instance.metadata_options[0].http_tokens == "required" && module.machine.instance.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "IMDSv1 is answered, or containers reach the machine's role"
  }
  assert {
    condition     = coalesce(module.network.public_address, false) == false
    error_message = "the machine has a public address"
  }
  assert {
    condition     = length(module.network.ingress) == 0
    error_message = "something is open though inbound_cidrs is empty"
  }
  assert {
    condition     = alltrue([for k, b in module.storage.buckets : alltrue([for o in [b.public_access_block] : o.block_public_acls && o.block_public_policy && o.ignore_public_acls && o.restrict_public_buckets])])
    error_message = "a bucket could be made public"
  }
  assert {
    condition     = alltrue([for k, b in module.storage.buckets : anytrue([for s in b.policy.Statement : s.Effect == "Deny" && try(s.Condition.Bool["aws:SecureTransport"], "") == "false"])])
    error_message = "a bucket can be read without TLS"
  }

  # Everything is encrypted, and kept.
  assert {
    condition     = module.machine.instance.root_block_device[0].encrypted && module.machine.data_disk.encrypted && module.machine.data_disk.final_snapshot
    error_message = "a disk is not encrypted, or the data disk goes without a snapshot"
  }
  assert {
    condition     = { for k, b in module.storage.buckets : k => b.encryption } == { data = "aws:kms", logs = "AES256" }
    error_message = "a bucket is not encrypted as it should be"
  }
  assert {
    condition     = alltrue([for k, b in module.storage.buckets : b.versioning == "Enabled"])
    error_message = "a bucket forgets former versions"
  }
  assert {
    condition     = alltrue([for o in module.registry.repositories : o.image_tag_mutability == "IMMUTABLE" && o.image_scanning_configuration[0].scan_on_push && o.encryption_configuration[0].encryption_type == "KMS"])
    error_message = "a repository lets tags move, or does not scan, or does not encrypt"
  }
  assert {
    condition     = module.machine.instance.disable_api_termination
    error_message = "the machine can be terminated by mistake"
  }

  # User-data is cloud-config, without secrets.
  assert {
    condition     = startswith(module.machine.user_data, "#cloud-config\n") && can(yamldecode(module.machine.user_data)) && length(module.machine.user_data) < 16384
    error_message = "user-data is not cloud-config of at most 16 KB"
  }
  assert {
    condition     = strcontains(module.machine.user_data, "RELEASE_SHA256='0000") && strcontains(module.machine.user_data, "HEALTH_PREDICT_RUN__SCHEDULE='0 5 * * *'")
    error_message = "user-data lacks the release or the schedule"
  }
  assert {
    condition     = !can(regex("(?i)password=|token=|api_key=", module.machine.user_data))
    error_message = "user-data holds a secret"
  }
}

run "without_nat_and_without_a_cluster" {
  variables {
    minikube = null
    nat      = false
  }
  assert {
    condition     = module.network.public_address && length(module.network.ingress) == 0
    error_message = "without NAT the machine needs a public address, and still nobody may come in"
  }
  assert {
    condition     = strcontains(module.machine.user_data, "MINIKUBE_VERSION=''") && !strcontains(module.machine.user_data, "DEPLOY__CONTEXT")
    error_message = "without a cluster user-data still speaks of one"
  }
}

run "named_ranges_reach_the_api_and_nothing_else" {
  variables {
    inbound_cidrs = ["10.0.0.0/16", "192.168.7.0/24"]
    alarm_email   = "operations@example.org"
  }
  assert {
    condition     = toset([for o in module.network.ingress : o.cidr_ipv4]) == toset(["10.0.0.0/16", "192.168.7.0/24"]) && alltrue([for o in module.network.ingress : o.from_port == 8000 && o.to_port == 8000])
    error_message = "inbound rules are not those that were asked for"
  }
}
